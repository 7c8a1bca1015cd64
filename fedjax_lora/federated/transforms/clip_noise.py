"""Update transforms of privacy: clipping and Gaussian noise, of clients or of the server."""

import dataclasses

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
    made = _noise("gaussian_noise", norm, multiplier, delta, epsilon, budget)

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        change = clipped(changes(start, trained, trainable), norm)
        noise = draw(jax.random.normal, key, change)
        noisy = jax.tree.map(lambda d, z: d + made.multiplier * norm * z, change, noise)
        return changed_by(start, trained, trainable, noisy), weight

    return UpdateTransform(apply=apply, stage="client", noise=made)


@checked_options
def central_noise(
    *,
    norm: float,
    multiplier: float | None = None,
    delta: float | None = None,
    epsilon: float | None = None,
    budget: float | None = None,
) -> UpdateTransform:
    """Clip updates to ``norm``; a trusted server adds normal noise once, to their mean.

    Its deviation is ``multiplier * norm`` times the largest share that any client has in any number
    of the mean (one over the cohort for equal clients), see `fedjax_lora.federated.central_noise`.
    Epsilon is that of `gaussian_noise` with the same multiplier, but holds only against those who
    see the models: the server sees the clipped updates. For methods that average with weights that
    do not depend on the updates, without other transforms.

    Args:
      norm: norm to which updates are clipped, adapter and head together.
      multiplier: standard deviation of the noise, over the norm and the largest share.
      delta: as for `gaussian_noise`.
      epsilon: as for `gaussian_noise`.
      budget: as for `gaussian_noise`.

    McMahan et al., "Learning Differentially Private Recurrent Language Models", arXiv 1710.06963.

    Raises:
      InputError: an option out of range.
    """
    made = _noise("central_noise", norm, multiplier, delta, epsilon, budget)
    return dataclasses.replace(clip(norm=norm), noise=made, central=made.multiplier * norm)


def _noise(
    name: str,
    norm: float,
    multiplier: float | None,
    delta: float | None,
    epsilon: float | None,
    budget: float | None,
) -> Noise:
    """The noise of checked options.

    Raises:
      InputError: an option out of range.
    """
    if multiplier is None:
        raise InputError(
            f"Update {name!r} needs a multiplier; a run finds it for an epsilon, and a loop of "
            "your own with transforms.multiplier_for."
        )
    if epsilon is not None:
        raise InputError(f"Update {name!r} takes a multiplier or an epsilon, not both.")
    need_positive(f"Update {name!r}", multiplier=multiplier, norm=norm)
    if budget is not None:
        need_positive(f"Update {name!r}", budget=budget)
    if delta is not None and not 0 < delta < 1:
        raise InputError(f"Update {name!r} needs delta between 0 and 1, got {delta}.")
    return Noise(multiplier, delta, budget)
