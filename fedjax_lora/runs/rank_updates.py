"""Ranks of a run's clients: the initial ones, and loss-based reallocation between rounds.

See `fedjax_lora.federated.ranks.reallocation`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from fedjax_lora import lora, methods
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Adapter, Key, Params
from fedjax_lora.data import Tokens
from fedjax_lora.federated import ClientUpdateFn, FederatedState, Plan
from fedjax_lora.federated.planning import Federation
from fedjax_lora.federated.ranks import Allocation, RankSchedule, client_scoring, reallocation
from fedjax_lora.federated.ranks.client_scoring import ValidationResult
from fedjax_lora.federated.ranks.reallocation import Reallocate, keep_ranks
from fedjax_lora.lora.params import Init
from fedjax_lora.runs.compilation import RoundSpec

NEW_COMPONENTS = 2**31
"""Folded into the root key to draw the components of promoted clients; no round has this number."""


class RankUpdates(NamedTuple):
    """The ranks of all clients and how they change.

    Attributes:
      initial: rank of each client in the first round, ``[N]``.
      reallocate: gives clients new ranks before a round.
    """

    initial: np.ndarray
    reallocate: Reallocate = keep_ranks


def make_rank_updates(
    allocation: Allocation,
    round_spec: RoundSpec,
    federation: Federation,
    client_update: Callable[[RoundSpec], ClientUpdateFn],
    *,
    base: Params,
    train: Tokens,
    validation: Tokens | None,
    place: Callable[[Tokens], Tokens],
    batch: int,
    init: Init,
    key: Key,
) -> RankUpdates:
    """Build the reallocation of ranks, with the scoring of clients that it needs.

    Args:
      allocation: the initial ranks and a schedule of their changes, if they change.
      round_spec: that of the rounds.
      federation: plans the training of the clients that are scored.
      client_update: builds the function that trains a cohort as a round does.
      base: parameters of the frozen base, on the device(s).
      train: training tokens, on the device(s).
      validation: validation tokens, if there are any.
      place: puts tokens on the device(s).
      batch: examples in a validation batch.
      init: initialisation of new components.
      key: root key of the run.

    Raises:
      InputError: the schedule needs validation examples or classes that the run does not have.
    """
    schedule = allocation.schedule
    if schedule is None:
        return RankUpdates(allocation.ranks)
    score: Callable[[FederatedState, Plan], ValidationResult] | None = None
    if schedule.needs_validation:
        examples = _checked(schedule, round_spec, validation)
        score_fn = _make_score_fn(round_spec, client_update(round_spec), examples, batch)
        placed = place(examples)
        score = lambda state, plan: score_fn(base, train, placed, state, plan, key)  # noqa: E731

    def draw_above(adapter: Adapter) -> Adapter:
        fresh_key = jax.random.fold_in(key, NEW_COMPONENTS)
        fresh = lora.init(round_spec.spec, fresh_key, method=init)
        return reallocation.reinitialize_above(round_spec.spec, schedule.low, adapter, fresh)

    return RankUpdates(
        allocation.ranks, reallocation.make_reallocate(schedule, federation, score, draw_above)
    )


def _checked(schedule: RankSchedule, round_spec: RoundSpec, validation: Tokens | None) -> Tokens:
    """Return the validation examples if clients can be scored on them.

    Raises:
      InputError: they cannot.
    """
    if validation is None:
        raise InputError(
            "Rank allocation 'loss_based' scores clients on validation examples, of which there "
            "are none; set validation_examples."
        )
    if round_spec.inputs.type == "regression" and schedule.score == "accuracy":
        raise InputError(
            "This task has no classes, hence no accuracy; choose score='loss' in the rank "
            "allocation 'loss_based'."
        )
    return validation


def _make_score_fn(
    round_spec: RoundSpec, client_update: ClientUpdateFn, validation: Tokens, batch: int
) -> client_scoring.ScoreFn:
    """Compile the scoring of a cohort on the validation examples."""
    objective = round_spec.inputs.objective()
    rows = client_scoring.bucket_by_length(validation.length, objective.lengths, batch=batch)
    validate = client_scoring.make_validate_fn(objective, rows)
    return client_scoring.make_score_fn(
        client_update,
        validate,
        round_spec.execution,
        kernels=functools.partial(methods.client_kernels, round_spec.make_method()),
    )
