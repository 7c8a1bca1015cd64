"""Rank reallocation: scores clients before a round and changes ranks by the scores.

Its state consists of the ranks and the `fedjax_lora.federated.ranks.ClientScores`, both arrays on
the host; everything else follows from (seed, round, client). A resumed run therefore continues
exactly as an uninterrupted one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class Reallocation(NamedTuple):
    """What a round begins with, after ranks and scores were updated.

    Attributes:
      state: state of the federation.
      rank: ranks of all clients, ``int32[N]``.
      scores: the latest score of every client.
      scored: ranks of the clients that have trained to be scored just now, cohort by cohort. Each
        has received the adapter and head at its rank, as at the start of a round, and has sent its
        model to the server for validation; see the cost of scoring in `loss_based`.
    """

    state: FederatedState
    rank: np.ndarray
    scores: ClientScores
    scored: Sequence[np.ndarray] = ()


Reallocate = Callable[[int, float, FederatedState, np.ndarray, ClientScores], Reallocation]
"""``(round, rate, state, rank, scores) -> Reallocation``."""


def keep_ranks(
    round: int, rate: float, state: FederatedState, rank: np.ndarray, scores: ClientScores
) -> Reallocation:
    """Keep all ranks."""
    return Reallocation(state, rank, scores)


def make_reallocate(
    schedule: RankSchedule,
    federation: Federation,
    score: Callable[[FederatedState, Plan], ValidationResult] | None,
    renew: Callable[[Adapter], Adapter],
) -> Reallocate:
    """Make the function that updates ranks and scores before a round.

    Args:
      schedule: when clients are scored, and how scores become ranks.
      federation: plans the local training of the scored clients.
      score: trains and evaluates the clients of a plan, see
        `fedjax_lora.federated.ranks.client_scoring`; None if the schedule needs no validation.
      renew: returns the global adapter with new components beyond the low rank, see
        `reinitialize_above`; used when clients are first promoted, if the schedule's ``promoted``
        is ``fresh``.

    Returns:
      ``reallocate(round, rate, state, rank, scores) -> Reallocation``. The new ranks follow from
      the scores of the round before; then the clients due in this round are scored, starting from
      the state at its beginning.
    """

    def reallocate(
        round: int, rate: float, state: FederatedState, rank: np.ndarray, scores: ClientScores
    ) -> Reallocation:
        if scores.has_round(round - 1):
            rank = schedule.ranks(scores)
            if schedule.promoted == "fresh" and round == 1:
                server = state.server
                state = state._replace(server=server._replace(adapter=renew(server.adapter)))
        ids = schedule.due(round, federation.sample(round), scores)
        if not len(ids):
            return Reallocation(state, rank, scores)
        if score is None:
            drawn = schedule.draw(round, ids, len(federation.members))
            return Reallocation(state, rank, scores.updated(ids, drawn, round))
        parts = federation.parts(ids)
        values = score_clients(round, rate, state, parts)
        scored = [np.full(len(part), schedule.low) for part in parts]
        return Reallocation(state, rank, scores.updated(ids, values[ids], round), scored)

    def score_clients(
        round: int, rate: float, state: FederatedState, parts: Sequence[np.ndarray]
    ) -> np.ndarray:
        assert score is not None
        low = np.full(len(federation.members), schedule.low)
        values = np.full(len(federation.members), np.nan)
        for part in parts:
            plan = federation.plan(round, low, rate, ids=part)
            present = plan.weight > 0
            loss, accuracy = (np.asarray(x)[present] for x in score(state, plan))
            values[plan.id[present]] = schedule.value(loss, accuracy)
        return values

    return reallocate


def reinitialize_above(spec: LoraSpec, rank: int, adapter: Adapter, fresh: Adapter) -> Adapter:
    """Replace the adapter's components from ``rank`` on by those of ``fresh``.

    Each array keeps its sharding, so that the round does not compile again.
    """
    keep = lora.prefix_mask(jnp.asarray(rank), spec.rank)
    mask = lora.factor_mask(lora.spread(spec, keep))
    return jax.tree.map(
        lambda m, old, new: jax.device_put(jnp.where(m, old, new), old.sharding),
        mask,
        adapter,
        fresh,
    )


def histogram(rank: Sequence[int] | np.ndarray) -> dict[str, int]:
    """Count the clients of each rank, as a JSON object.

    >>> histogram([4, 16, 4])
    {'4': 2, '16': 1}
    """
    values, counts = np.unique(rank, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}
