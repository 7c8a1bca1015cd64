"""Local optimizers and learning-rate schedules by name; all of them optax's own."""

import inspect
from collections.abc import Callable

import optax

from fedjax_lora import specs
from fedjax_lora.errors import InputError, unknown

SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": lambda *, rounds: optax.constant_schedule(1.0),
    "linear": lambda *, rounds, end=0.0: optax.linear_schedule(1.0, end, rounds),
    "cosine": lambda *, rounds, end=0.0: optax.cosine_decay_schedule(1.0, rounds, alpha=end),
    "warmup_cosine": lambda *, rounds, warmup=3, start=0.1, end=0.0: (
        optax.warmup_cosine_decay_schedule(start, 1.0, warmup, rounds, end)
    ),
    "exponential": lambda *, rounds, per_round=0.99: optax.exponential_decay(1.0, 1, per_round),
}
"""Factors on the learning rate as functions of the round."""


def optimizer(spec: str, *, clip: float | None = None) -> optax.GradientTransformation:
    """An optax optimizer of learning rate 1, after clipping each gradient to a global norm.

    Args:
      spec: any optimizer of optax that takes ``learning_rate``, with its options, for example
        ``"adamw(weight_decay=0.01)"`` or ``"sgd(momentum=0.9)"``.
      clip: the norm, over everything the client trains; None for no clipping.

    Raises:
      InputError: optax has no such optimizer, or it has no such option.
    """
    name, options = specs.parse(spec, "optimizer")
    known = {n for n in dir(optax) if _takes_rate(getattr(optax, n))}
    if name not in known:
        raise unknown("optimizer", name, known)
    try:
        chosen = getattr(optax, name)(learning_rate=1.0, **options)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(getattr(optax, name)).parameters)
        raise InputError(f"Optimizer {spec!r}: {error}; options: {accepted}.") from error
    return chosen if clip is None else optax.chain(optax.clip_by_global_norm(clip), chosen)


def _takes_rate(factory: object) -> bool:
    if not inspect.isfunction(factory):
        return False
    return next(iter(inspect.signature(factory).parameters), "") == "learning_rate"


def schedule(spec: str, *, rounds: int) -> optax.Schedule:
    """A factor on the learning rate, from the round; see `SCHEDULES`.

    >>> float(schedule("linear(end=0.5)", rounds=10)(5))
    0.75
    """
    return specs.build(spec, SCHEDULES, "schedule", rounds=rounds)
