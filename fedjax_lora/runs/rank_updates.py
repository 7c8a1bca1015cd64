"""Loss-based rank allocation as a part of a run; see `fedjax_lora.federated.ranks.reallocation`."""

from collections.abc import Callable
from typing import Any

import jax

from fedjax_lora import federated, lora
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Adapter, Key, Params
from fedjax_lora.federated import FederatedState, Plan
from fedjax_lora.federated.planning import Federation
from fedjax_lora.federated.ranks import RankSchedule, client_scoring, reallocation
from fedjax_lora.federated.ranks.reallocation import Reallocate
from fedjax_lora.lora.params import Init
from fedjax_lora.runs.compilation import RoundSpec

NEW_COMPONENTS = 2**31
"""Folded into the root key to draw the components of promoted clients; no round has this number."""


def make_reallocate(
    review: RankSchedule,
    recipe: RoundSpec,
    federation: Federation,
    *,
    base: Params,
    train: Any,
    validation: Any | None,
    batch: int,
    init: Init,
    key: Key,
) -> Reallocate:
    """Who is scored on what, and what new components begin as.

    Args:
      review: when clients are scored and what follows.
      recipe: that of the rounds.
      federation: plans the training of those who are scored.
      base: the frozen model.
      train: training tokens.
      validation: validation tokens, if there are any.
      batch: examples in a validation batch.
      init: how components begin.
      key: the run's root key.

    Raises:
      InputError: the review needs validation examples or classes that the run does not have.
    """

    def renew(adapter: Adapter) -> Adapter:
        own = jax.random.fold_in(key, NEW_COMPONENTS)
        fresh = lora.init(recipe.spec, own, method=init)
        return reallocation.reinitialize_above(recipe.spec, review.low, adapter, fresh)

    def measured(
        score_fn: client_scoring.ScoreFn,
    ) -> Callable[[FederatedState, Plan], client_scoring.ValidationResult]:
        return lambda state, plan: score_fn(base, train, validation, state, plan, key)

    score = None
    if review.needs_validation:
        _check(review, recipe, validation)
        score = measured(_make_score(recipe, validation, batch))
    return reallocation.make_reallocate(review, federation, score, renew)


def _check(review: RankSchedule, recipe: RoundSpec, validation: Any | None) -> None:
    if validation is None:
        raise InputError(
            "Rank allocation 'loss_based' scores clients on validation examples, of which there "
            "are none; set validation_examples."
        )
    if recipe.reading.kind == "regression" and review.score == "accuracy":
        raise InputError(
            "This task has no classes to be accurate about; choose score='loss' in the rank "
            "allocation 'loss_based'."
        )


def _make_score(recipe: RoundSpec, validation: Any, batch: int) -> client_scoring.ScoreFn:
    client_update = federated.make_client_update(
        recipe.make_method(), recipe.training(), heads=recipe.heads, execution=recipe.execution
    )
    objective = recipe.reading.objective()
    rows = client_scoring.bucket_by_length(
        jax.device_get(validation.length), objective.lengths, batch=batch
    )
    validate = client_scoring.make_validate_fn(objective, rows)
    return client_scoring.make_score_fn(client_update, validate, recipe.execution)
