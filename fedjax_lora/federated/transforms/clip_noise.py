"""What a client does to its own update before it sends it: clipping and noise."""

import jax
import jax.numpy as jnp

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
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


def clip(*, norm: float) -> UpdateTransform:
    """Scale a client's update down to ``norm``; one that is shorter passes bit for bit.

    The norm is taken over everything the client sends, adapter and head together.
    """
    need_positive("Update 'clip'", norm=norm)

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        change = changes(start, trained, trainable)
        long = norms(change) > norm
        shorter = changed_by(start, trained, trainable, clipped(change, norm))
        return trees.where(long, shorter, trained), weight

    return UpdateTransform(apply=apply, stage="client")


def clipped(change: ClientParams, norm: float) -> ClientParams:
    """``change * min(1, norm / its norm)`` for every client, ``[c, ...]``."""
    size = norms(change)
    scale = jnp.where(size > norm, norm / size, 1.0)
    return jax.tree.map(lambda d: trees.expand(scale, d) * d, change)


def gaussian_noise(
    *, multiplier: float, norm: float, delta: float | None = None
) -> UpdateTransform:
    """Clip to ``norm``, then add normal noise of deviation ``multiplier * norm`` to every entry.

    Client-level differential privacy. Each client adds the noise to its own message, so nothing is
    asked of the method: whatever it makes of the messages is post-processing. The price, against a
    trusted server that adds noise once to the mean of `K` equally weighted clients, is ``sqrt(K)``
    times as much noise on the mean.

    What the guarantee is about is the value of a client's update. Ranks, weights, which components
    a client trains, and whether its training broke, count as public; the losses that the simulator
    reports, and heads that stay with their clients, are not covered. What the epsilons in the
    metrics say is in `fedjax_lora.federated.transforms.accountant`.

    Args:
      multiplier: of the noise.
      norm: that an update is clipped to, adapter and head together.
      delta: of the guarantee; one over the number of clients by default, which is the largest that
        means anything.

    The Gaussian mechanism as in McMahan et al., "Learning Differentially Private Recurrent Language
    Models", arXiv 1710.06963, but with the noise added at the clients.
    """
    need_positive("Update 'gaussian_noise'", multiplier=multiplier, norm=norm)
    if delta is not None and not 0 < delta < 1:
        raise InputError(f"Update 'gaussian_noise' needs delta between 0 and 1, got {delta}.")

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        change = clipped(changes(start, trained, trainable), norm)
        noise = draw(jax.random.normal, key, change)
        noisy = jax.tree.map(lambda d, z: d + multiplier * norm * z, change, noise)
        return changed_by(start, trained, trainable, noisy), weight

    return UpdateTransform(apply=apply, stage="client", noise=Noise(multiplier, delta))
