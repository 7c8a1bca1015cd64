"""Local optimizers and learning-rate schedules by name; all of them optax's own."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError, unknown


def constant(*, rounds: int) -> optax.Schedule:
    """Always 1."""
    return optax.constant_schedule(1.0)


def linear(*, rounds: int, end: float = 0.0) -> optax.Schedule:
    """From 1 to ``end`` in a straight line."""
    return optax.linear_schedule(1.0, end, rounds)


def cosine(*, rounds: int, end: float = 0.0) -> optax.Schedule:
    """From 1 to ``end`` along half a cosine."""
    return optax.cosine_decay_schedule(1.0, rounds, alpha=end)


def warmup_cosine(
    *, rounds: int, warmup: int = 3, start: float = 0.1, end: float = 0.0
) -> optax.Schedule:
    """From ``start`` up to 1 in ``warmup`` rounds, then like `cosine`."""
    if not 0 <= warmup < rounds:
        raise InputError(
            f"Schedule 'warmup_cosine' warms up for {warmup} of {rounds} rounds; choose "
            "warmup=... from 0 to less than that."
        )
    return optax.warmup_cosine_decay_schedule(start, 1.0, warmup, rounds, end)


def exponential(*, rounds: int, per_round: float = 0.99) -> optax.Schedule:
    """Multiplied by ``per_round`` every round."""
    if not per_round > 0:
        raise InputError(f"Schedule 'exponential' needs per_round above 0, got {per_round}.")
    return optax.exponential_decay(1.0, 1, per_round)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "warmup_cosine": warmup_cosine,
    "exponential": exponential,
}
"""Factors on the learning rate as functions of the round."""


def optimizer(spec: str, *, clip: float | None = None) -> optax.GradientTransformation:
    """An optax optimizer of learning rate 1, after clipping each gradient to a global norm.

    Args:
      spec: any optimizer of optax that takes ``learning_rate``, with its options, for example
        ``"adamw(weight_decay=0.01)"`` or ``"sgd(momentum=0.9)"``.
      clip: the norm, over everything the client trains; None for no clipping.

    Raises:
      InputError: optax has no such optimizer, it has no such option or not with this value, or it
        needs more than a gradient (a line search, for example).
    """
    name, options = registry.parse(spec, "optimizer")
    public = [n for n in dir(optax) if not n.startswith("_")]
    known = {n for n in public if _takes_rate(getattr(optax, n))}
    if name not in known:
        raise unknown("optimizer", name, known)
    try:
        chosen = getattr(optax, name)(learning_rate=1.0, **options)
        _try(chosen)
    except (TypeError, ValueError) as error:
        accepted = ", ".join(inspect.signature(getattr(optax, name)).parameters)
        what = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"Optimizer {spec!r}: {what}; options: {accepted}.") from error
    return chosen if clip is None else optax.chain(optax.clip_by_global_norm(clip), chosen)


def _try(chosen: optax.GradientTransformation) -> None:
    """Trace one update, so that what cannot work fails here and not in the middle of a round."""
    params = {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    with jax.numpy_dtype_promotion("standard"):
        jax.eval_shape(lambda p: chosen.update(p, chosen.init(p), p), params)


def _takes_rate(factory: object) -> bool:
    if not inspect.isfunction(factory):
        return False
    return next(iter(inspect.signature(factory).parameters), "") == "learning_rate"


def schedule(spec: str, *, rounds: int) -> optax.Schedule:
    """A factor on the learning rate, from the round; see `SCHEDULES`.

    >>> float(schedule("linear(end=0.5)", rounds=10)(5))
    0.75
    """
    return registry.build(spec, SCHEDULES, "schedule", rounds=rounds)
