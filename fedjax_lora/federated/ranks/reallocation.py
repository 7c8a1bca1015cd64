"""Ranks that change during a run: once a round, score who is to be scored and decide.

The whole memory of it are the ranks and the `fedjax_lora.federated.ranks.ClientScores`, both arrays
on the host; everything else comes from (seed, round, client). So a resumed run goes on as it would
have.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.types import Adapter
from fedjax_lora.federated import FederatedState, Plan
from fedjax_lora.federated.planning import Federation
from fedjax_lora.federated.ranks import ClientScores, RankSchedule
from fedjax_lora.federated.ranks.client_scoring import ValidationResult
from fedjax_lora.lora import LoraSpec

Reallocate = Callable[
    [int, float, FederatedState, np.ndarray, ClientScores],
    tuple[FederatedState, np.ndarray, ClientScores],
]


def keep_ranks(
    round: int, rate: float, state: FederatedState, rank: np.ndarray, scores: ClientScores
) -> tuple[FederatedState, np.ndarray, ClientScores]:
    """Ranks that nobody reviews."""
    return state, rank, scores


def make_reallocate(
    review: RankSchedule,
    federation: Federation,
    score: Callable[[FederatedState, Plan], ValidationResult] | None,
    renew: Callable[[Adapter], Adapter],
) -> Reallocate:
    """What happens to ranks before a round.

    Args:
      review: when clients are scored and what follows.
      federation: plans the training of those who are scored.
      score: trains and evaluates the clients of a plan, see
        `fedjax_lora.federated.ranks.client_scoring`; None if the review needs no validation.
      renew: the global adapter with new components beyond the low rank, see `reinitialize_above`;
        used when clients are first promoted, if the review wants those components ``fresh``.

    Returns:
      ``reallocate(round, rate, state, rank, scores) -> (state, rank, scores)``: ranks decided on
      the scores of the round before, then the scores of this one, from the state it begins with.
    """

    def measured(round: int, rate: float, state: FederatedState, ids: np.ndarray) -> np.ndarray:
        if score is None:
            return review.draw(round, ids, len(federation.members))
        low = np.full(len(federation.members), review.low)
        values = np.full(len(federation.members), np.nan)
        for part in federation.parts(ids):
            plan = federation.plan(round, low, rate, ids=part)
            present = plan.weight > 0
            seen = score(state, plan)
            loss, accuracy = (np.asarray(x)[present] for x in seen)
            values[plan.id[present]] = review.value(loss, accuracy)
        return values[ids]

    def reallocate(
        round: int, rate: float, state: FederatedState, rank: np.ndarray, scores: ClientScores
    ) -> tuple[FederatedState, np.ndarray, ClientScores]:
        if scores.has_round(round - 1):
            rank = review.ranks(scores)
            if review.promoted == "fresh" and round == 1:
                server = state.server
                state = state._replace(server=server._replace(adapter=renew(server.adapter)))
        ids = review.due(round, federation.sample(round), scores)
        if len(ids):
            scores = scores.updated(ids, measured(round, rate, state, ids), round)
        return state, rank, scores

    return reallocate


def scoring_ranks(
    review: RankSchedule | None, federation: Federation, scores: ClientScores, round: int
) -> list[np.ndarray]:
    """The ranks at which clients trained to be scored before a round, cohort by cohort.

    Each of these clients has received what a round begins with at its rank, and sent its model to
    the server, which validates it.
    """
    if review is None or not review.needs_validation:
        return []
    ids = np.flatnonzero(scores.round == round)
    return [np.full(len(part), review.low) for part in federation.parts(ids)]


def reinitialize_above(spec: LoraSpec, rank: int, adapter: Adapter, fresh: Adapter) -> Adapter:
    """The adapter with its components from ``rank`` on exchanged for fresh ones.

    Each array stays where it was, so that the round does not compile again.
    """
    kept = lora.prefix_mask(jnp.asarray(rank), spec.rank)
    mask = lora.factor_mask(lora.spread(spec, kept))
    return jax.tree.map(
        lambda m, old, new: jax.device_put(jnp.where(m, old, new), old.sharding),
        mask,
        adapter,
        fresh,
    )


def histogram(rank: Sequence[int] | np.ndarray) -> dict[str, int]:
    """How many clients have each rank, as a JSON object.

    >>> histogram([4, 16, 4])
    {'4': 2, '16': 1}
    """
    values, counts = np.unique(rank, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}
