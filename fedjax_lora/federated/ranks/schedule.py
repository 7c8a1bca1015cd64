"""Ranks by score: everybody begins low, the best share gets the high rank.

All of it is on the host and in NumPy; what the scores are is found out by
`fedjax_lora.federated.ranks.client_scoring`.
"""

import dataclasses
import fractions
import math
from typing import Literal, NamedTuple

import numpy as np

ScoreBy = Literal["loss", "accuracy"]
ScoredClients = Literal["all", "cohort"]
PromotionOrder = Literal["best", "worst", "random"]
PromotedInit = Literal["server", "fresh"]

NEVER = -1


class ClientScores(NamedTuple):
    """The last score of every client; the lowest is promoted first."""

    value: np.ndarray  # float64[N]
    round: np.ndarray  # int32[N], the round it is of, counted from 0, or NEVER

    @classmethod
    def initial(cls, clients: int) -> "ClientScores":
        """Nobody has been scored."""
        return cls(np.full(clients, np.inf), np.full(clients, NEVER, np.int32))

    def is_scored(self) -> np.ndarray:
        """Who has been scored: ``bool[N]``."""
        return self.round != NEVER

    def has_round(self, round: int) -> bool:
        """Whether a round brought new scores."""
        return bool(np.any(self.is_scored() & (self.round == round)))

    def updated(self, ids: np.ndarray, value: np.ndarray, round: int) -> "ClientScores":
        """These scores with those of some clients exchanged."""
        new = ClientScores(self.value.copy(), self.round.copy())
        new.value[ids], new.round[ids] = value, round
        return new


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankSchedule:
    """When clients are scored, and what their scores mean for their ranks."""

    low: int
    high: int
    share: int | float  # of the clients scored
    score: ScoreBy
    every: int | None
    scored: ScoredClients
    order: PromotionOrder
    promoted: PromotedInit
    seed: int

    @property
    def levels(self) -> tuple[int, int]:
        """Both ranks."""
        return self.low, self.high

    @property
    def needs_validation(self) -> bool:
        """Whether a score takes training and validating."""
        return self.order != "random"

    def due(self, round: int, cohort: np.ndarray, scores: ClientScores) -> np.ndarray:
        """Ids of the clients to score in a round, whose cohort is given."""
        ids = np.arange(len(scores.value)) if self.scored == "all" else cohort
        if self.every is None:
            return ids[~scores.is_scored()[ids]]
        return ids if round % self.every == 0 else ids[:0]

    def value(self, loss: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
        """The order's value of some clients' measurements; a broken client is last in any order."""
        badness = loss if self.score == "loss" else -accuracy
        value = -badness if self.order == "worst" else badness
        return np.where(np.isfinite(loss), value.astype(np.float64), np.inf)

    def draw(self, round: int, ids: np.ndarray, clients: int) -> np.ndarray:
        """Values of the random order, from (seed, round, client)."""
        return np.random.default_rng([self.seed, 3, round]).random(clients)[ids]

    def ranks(self, scores: ClientScores) -> np.ndarray:
        """Everybody's rank: ``int32[N]``. The smaller id wins a tie, clients not scored are low."""
        known = np.flatnonzero(scores.is_scored())
        winners = known[np.argsort(scores.value[known], kind="stable")]
        ranks = np.full(len(scores.value), self.low, np.int32)
        ranks[winners[: share_of(self.share, len(known))]] = self.high
        return ranks


def share_of(share: int | float, count: int) -> int:
    """``ceil(share * count)``, the share taken as the decimal number it is written as.

    In floating point ``0.07 * 100`` is a little above 7.

    >>> share_of(0.07, 100), share_of(0.1, 101), share_of(0.1, 1)
    (7, 11, 1)
    """
    return math.ceil(fractions.Fraction(str(share)) * count)
