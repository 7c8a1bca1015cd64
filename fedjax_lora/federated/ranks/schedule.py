"""Rank schedules: the best-scored clients get the high rank, all others the low one.

This module works on the host, in NumPy; `fedjax_lora.federated.ranks.client_scoring` computes the
scores.
"""

import dataclasses
import fractions
import math
from typing import Literal, NamedTuple

import numpy as np

from fedjax_lora.core.records import check_fields

ScoreBy = Literal["loss", "accuracy"]
ScoredClients = Literal["all", "cohort"]
PromotionOrder = Literal["best", "worst", "random"]
PromotedInit = Literal["server", "fresh"]

NEVER = -1


class ClientScores(NamedTuple):
    """The latest score of every client; the lowest score is promoted first."""

    value: np.ndarray  # float64[N]
    round: np.ndarray  # int32[N], the round of the score, counted from 0, or NEVER

    @classmethod
    def initial(cls, clients: int) -> "ClientScores":
        """Scores at the start of a run: no client has one."""
        return cls(np.full(clients, np.inf), np.full(clients, NEVER, np.int32))

    def is_scored(self) -> np.ndarray:
        """Clients that have a score: ``bool[N]``."""
        return self.round != NEVER

    def has_round(self, round: int) -> bool:
        """Whether any score is of this round."""
        return bool(np.any(self.is_scored() & (self.round == round)))

    def updated(self, ids: np.ndarray, value: np.ndarray, round: int) -> "ClientScores":
        """Return the scores with new values for some clients."""
        new = ClientScores(self.value.copy(), self.round.copy())
        new.value[ids], new.round[ids] = value, round
        return new


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankSchedule:
    """When clients are scored, and how scores become ranks; the options of `loss_based`."""

    low: int
    high: int
    share: int | float  # share of the scored clients that is promoted
    score: ScoreBy
    every: int | None  # rounds between scorings; None scores once
    scored: ScoredClients
    order: PromotionOrder
    promoted: PromotedInit
    seed: int

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def levels(self) -> tuple[int, int]:
        """The two ranks, the lower first."""
        return self.low, self.high

    @property
    def needs_validation(self) -> bool:
        """Whether scoring trains and validates clients."""
        return self.order != "random"

    def due(self, round: int, cohort: np.ndarray, scores: ClientScores) -> np.ndarray:
        """Ids of the clients to score in a round with the given cohort."""
        ids = np.arange(len(scores.value)) if self.scored == "all" else cohort
        if self.every is None:
            return ids[~scores.is_scored()[ids]]
        return ids if round % self.every == 0 else ids[:0]

    def value(self, loss: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
        """Turn validation results into scores; a client with a non-finite loss ranks last."""
        error = loss if self.score == "loss" else -accuracy
        value = -error if self.order == "worst" else error
        return np.where(np.isfinite(loss), value.astype(np.float64), np.inf)

    def draw(self, round: int, ids: np.ndarray, clients: int) -> np.ndarray:
        """Draw the scores of the random order, which depend on (seed, round, client)."""
        return np.random.default_rng([self.seed, 3, round]).random(clients)[ids]

    def ranks(self, scores: ClientScores) -> np.ndarray:
        """Ranks of all clients: ``int32[N]``.

        The smaller id wins a tie; clients without a score have the low rank.
        """
        scored = np.flatnonzero(scores.is_scored())
        best_first = scored[np.argsort(scores.value[scored], kind="stable")]
        ranks = np.full(len(scores.value), self.low, np.int32)
        ranks[best_first[: share_of(self.share, len(scored))]] = self.high
        return ranks


def share_of(share: int | float, count: int) -> int:
    """Compute ``ceil(share * count)`` exactly, with the share as the decimal number it prints as.

    In floating point ``0.07 * 100`` is a little above 7.

    >>> share_of(0.07, 100), share_of(0.1, 101), share_of(0.1, 1)
    (7, 11, 1)
    """
    return math.ceil(fractions.Fraction(str(share)) * count)
