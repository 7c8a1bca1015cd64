"""Loss-based rank allocation as a part of a run; see `fedjax_lora.reallocation`."""

from collections.abc import Callable
from typing import Any

import jax

from fedjax_lora import adapters, reallocation, rounds, scoring
from fedjax_lora.adapters.factors import Init
from fedjax_lora.allocation import Review
from fedjax_lora.errors import InputError
from fedjax_lora.federation import Federation
from fedjax_lora.programs import RoundRecipe
from fedjax_lora.reallocation import Reallocate
from fedjax_lora.rounds import FederatedState, Plan
from fedjax_lora.types import Adapter, Key, Params

NEW_COMPONENTS = 2**31
"""Folded into the root key to draw the components of promoted clients; no round has this number."""


def make_reallocate(
    review: Review,
    recipe: RoundRecipe,
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
        fresh = adapters.init(recipe.template, own, method=init)
        return reallocation.renew_above(recipe.template, review.low, adapter, fresh)

    def measured(score_fn: scoring.ScoreFn) -> Callable[[FederatedState, Plan], scoring.Seen]:
        return lambda state, plan: score_fn(base, train, validation, state, plan, key)

    score = None
    if review.needs_validation:
        _check(review, recipe, validation)
        score = measured(_make_score(recipe, validation, batch))
    return reallocation.make_reallocate(review, federation, score, renew)


def _check(review: Review, recipe: RoundRecipe, validation: Any | None) -> None:
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


def _make_score(recipe: RoundRecipe, validation: Any, batch: int) -> scoring.ScoreFn:
    method, train, execution = recipe.parts()
    locally = rounds.make_local(method, recipe.template, train, heads=recipe.heads, **execution)
    objective = recipe.reading.objective()
    rows = scoring.rows_by_length(jax.device_get(validation.length), objective.lengths, batch=batch)
    validate = scoring.make_validation(objective, rows)
    return scoring.make_score(locally, validate, **execution)
