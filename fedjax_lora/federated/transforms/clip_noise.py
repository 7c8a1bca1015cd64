"""Client-side update transforms: clipping and Gaussian noise."""

import jax
import jax.numpy as jnp

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Array, ClientParams, Key
from fedjax_lora.federated.transforms.base import (
    Noise,
    UpdateTransform,
    changed_by,
    changes,
    draw,
    need_positive,
    norms,
)


@checked_options
def clip(*, norm: float) -> UpdateTransform:
    """Clip each client's update to a norm; shorter updates are returned bit for bit.

    Args:
      norm: largest norm, over adapter and head together.

    Raises:
      InputError: a norm that is not positive and finite.
    """
    need_positive("Update 'clip'", norm=norm)

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        change = changes(start, trained, trainable)
        too_long = norms(change) > norm
        shortened = changed_by(start, trained, trainable, clipped(change, norm))
        return trees.where(too_long, shortened, trained), weight

    return UpdateTransform(apply=apply, stage="client")


def clipped(change: ClientParams, norm: float) -> ClientParams:
    """Scale each client's update by ``min(1, norm / length)``, ``[c, ...]``."""
    length = norms(change)
    scale = jnp.where(length > norm, norm / length, 1.0)
    return jax.tree.map(lambda d: trees.expand(scale, d) * d, change)


@checked_options
def gaussian_noise(
    *,
    norm: float,
    multiplier: float | None = None,
    delta: float | None = None,
    epsilon: float | None = None,
    budget: float | None = None,
) -> UpdateTransform:
    """Clip updates to ``norm`` and add Gaussian noise of deviation ``multiplier * norm`` per entry.

    Provides client-level differential privacy. Each client adds the noise to its own message, so
    aggregation by any method is post-processing. Compared with a trusted server that adds noise
    once to the mean of `K` equally weighted clients, the mean has ``sqrt(K)`` times as much noise.

    The guarantee covers the values of a client's update. Ranks, weights, the components that a
    client trains, and whether its training diverged are treated as public; the losses that the
    simulator reports and heads that stay with their clients are not covered. The epsilons in the
    metrics are explained in `fedjax_lora.federated.transforms.accountant`.

    Args:
      norm: norm to which updates are clipped, adapter and head together.
      multiplier: standard deviation of the noise, over ``norm``.
      delta: of the guarantee; by default one over the number of clients. That is the largest value
        that says anything: a mechanism that publishes a client with a probability of delta
        publishes one client of all. Guarantees that are to convince others take less.
      epsilon: in place of the multiplier: a run takes the smallest one whose ``epsilon`` after all
        of its rounds is at most this.
      budget: a run ends before the round in which its ``epsilon`` would exceed this.

    The Gaussian mechanism as in McMahan et al., "Learning Differentially Private Recurrent Language
    Models", arXiv 1710.06963, but with the noise added at the clients.

    Raises:
      InputError: an option out of range.
    """
    if multiplier is None:
        raise InputError(
            "Update 'gaussian_noise' needs a multiplier; a run finds it for an epsilon, and a loop "
            "of your own with transforms.multiplier_for."
        )
    if epsilon is not None:
        raise InputError("Update 'gaussian_noise' takes a multiplier or an epsilon, not both.")
    need_positive("Update 'gaussian_noise'", multiplier=multiplier, norm=norm)
    if budget is not None:
        need_positive("Update 'gaussian_noise'", budget=budget)
    if delta is not None and not 0 < delta < 1:
        raise InputError(f"Update 'gaussian_noise' needs delta between 0 and 1, got {delta}.")

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        change = clipped(changes(start, trained, trainable), norm)
        noise = draw(jax.random.normal, key, change)
        noisy = jax.tree.map(lambda d, z: d + multiplier * norm * z, change, noise)
        return changed_by(start, trained, trainable, noisy), weight

    return UpdateTransform(apply=apply, stage="client", noise=Noise(multiplier, delta, budget))
