"""What a server does against updates that are wrong, on purpose or not."""

import fractions
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import ClientParams, Key
from fedjax_lora.federated.transforms.base import UpdateTransform, changes, norms


def reject_outliers(*, factor: float = 3.0) -> UpdateTransform:
    """Leave out clients whose update is longer than ``factor`` times the cohort's median norm.

    The norm is over adapter and head together. Of two clients none can be an outlier for a factor
    of 2 or more: the median is half their sum.
    """
    if not 1 <= factor < math.inf:
        raise InputError(f"Update 'reject_outliers' needs a factor of at least 1, got {factor}.")

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        size = norms(changes(start, trained, trainable))
        limit = factor * middle(size, weight > 0)
        return trained, jnp.where(size > limit, 0.0, weight)

    return UpdateTransform(apply=apply, stage="server")


def median() -> UpdateTransform:
    """Each number becomes the median over the clients that trained it.

    Every one of them is given that value, so a mean over them, with whatever weights, returns it:
    a method that averages becomes the coordinate-wise median. Weights are not looked at.

    Yin et al., "Byzantine-Robust Distributed Learning", arXiv 1803.01498.
    """
    return _everywhere(middle)


def trimmed_mean(*, share: float = 0.1) -> UpdateTransform:
    """Each number becomes its mean over the clients that trained it, without the extremes.

    Of `n` such clients the ``floor(share * n)`` largest and as many smallest values are left out;
    the others count alike. Otherwise like `median`, of the same paper.
    """
    if not 0 <= share < 0.5:
        raise InputError(
            f"Update 'trimmed_mean' needs a share from 0 to less than 0.5, got {share}."
        )
    exact = fractions.Fraction(str(share))  # 0.29 of 100 are 29

    def statistic(x: Float[Array, "c *s"], own: Bool[Array, "c *s"]) -> Float[Array, "*s"]:
        most = x.shape[0]
        cuts = jnp.asarray([math.floor(exact * n) for n in range(most + 1)])
        count = jnp.sum(own, axis=0)
        cut = cuts[count]
        place = trees.expand(jnp.arange(most, dtype=count.dtype), x)
        inner = (place >= cut[None]) & (place < (count - cut)[None])
        total = jnp.sum(jnp.where(inner, _in_order(x, own), 0), axis=0)
        return trees.safe_divide(total, (count - 2 * cut).astype(x.dtype), jnp.zeros(()))

    return _everywhere(statistic)


def middle(x: Float[Array, "c *s"], own: Bool[Array, "c *s"]) -> Float[Array, "*s"]:
    """The median of the entries that count, of an even number the mean of the middle two."""
    order, count = _in_order(x, own), jnp.sum(own, axis=0)

    def at(place: Array) -> Array:
        return jnp.take_along_axis(order, jnp.maximum(place, 0)[None], axis=0)[0]

    return 0.5 * at((count - 1) // 2) + 0.5 * at(count // 2)


def _in_order(x: Array, own: Array) -> Array:
    """Sorted over the clients, those that do not count last."""
    return jnp.sort(jnp.where(own, x, jnp.inf), axis=0)


def _everywhere(statistic: Callable[[Array, Array], Array]) -> UpdateTransform:
    """Replace every number by a statistic over the present clients that trained it."""

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        def leaf(x: Array, mask: Array) -> Array:
            own = jnp.broadcast_to(mask & trees.expand(weight > 0, mask), x.shape)
            return jnp.where(own, statistic(x, own)[None], x)

        return jax.tree.map(leaf, trained, trainable), weight

    return UpdateTransform(apply=apply, stage="server", is_aggregate=True)
