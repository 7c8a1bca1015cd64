"""Server-side update transforms against faulty or malicious updates."""

import fractions
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import ClientParams, Key
from fedjax_lora.federated.transforms.base import UpdateTransform, changed_by, changes, norms


@checked_options
def reject_outliers(*, factor: float = 3.0) -> UpdateTransform:
    """Exclude clients whose update norm exceeds ``factor`` times the cohort's median norm.

    The norm is over adapter and head together. With two clients the median is half the sum of their
    norms, so with a factor of 2 or more neither can be an outlier.

    Raises:
      InputError: a factor below 1.
    """
    if not 1 <= factor < math.inf:
        raise InputError(f"Update 'reject_outliers' needs a factor of at least 1, got {factor}.")

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        length = norms(changes(start, trained, trainable))
        limit = factor * masked_median(length, weight > 0)
        return trained, jnp.where(length > limit, 0.0, weight)

    return UpdateTransform(apply=apply, stage="server")


@checked_options
def norm_bound(*, quantile: float = 0.5) -> UpdateTransform:
    """Shorten updates to a quantile of the cohort's norms; shorter ones are kept bit for bit.

    The norm is over adapter and head together. The bound follows the round: no norm has to be
    guessed, and with less than half of the clients attacking the median is between honest norms.

    Args:
      quantile: of the norms of the clients that answer, between neighbours by interpolation.

    Sun et al., "Can You Really Backdoor Federated Learning?", arXiv 1911.07963 (a fixed bound);
    Andrew et al., "Differentially Private Learning with Adaptive Clipping", arXiv 1905.03871 (a
    quantile, followed over the rounds).

    Raises:
      InputError: a quantile outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise InputError(
            f"Update 'norm_bound' needs a quantile above 0 and at most 1, got {quantile}."
        )

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        change = changes(start, trained, trainable)
        length = norms(change)
        bound = jnp.nanquantile(jnp.where(weight > 0, length, jnp.nan), quantile)
        scale = jnp.where(length > bound, bound / length, 1.0)
        short = jax.tree.map(lambda d: trees.expand(scale, d) * d, change)
        return trees.where(
            length > bound, changed_by(start, trained, trainable, short), trained
        ), weight

    return UpdateTransform(apply=apply, stage="server")


@checked_options
def median(*, least_owners: int = 1) -> UpdateTransform:
    """Coordinate-wise median over the clients that trained an entry.

    Each of these clients receives the median as its value, which replaces their mean in the method.
    A method that averages over the clients that trained an entry (`fedit`, `masked_mean`,
    `replication`, `fed_plora`) returns the median itself, whatever the clients' weights. One that
    divides by more clients than these dilutes the median as it dilutes a mean: `zero_padding` and
    `hetlora` multiply it by the share of the component's owners, `fslora` and `lora_a2` its
    difference from the server's value by the share of those who trained it.

    Where ranks are mixed, few clients own the high components, and of one or two values a median
    leaves out none: an attacker of high rank decides there. Rounds report such components as
    ``few_owners``.

    Args:
      least_owners: entries that fewer clients of the round have trained stay as they were sent;
        with 3 a single attacker decides nowhere.

    Yin et al., "Byzantine-Robust Distributed Learning", arXiv 1803.01498.
    """
    return _coordinatewise(masked_median, least_owners, needs=3)


@checked_options
def trimmed_mean(*, share: float = 0.1, least_owners: int = 1) -> UpdateTransform:
    """Coordinate-wise trimmed mean over the clients that trained an entry.

    Of `n` such clients the ``floor(share * n)`` largest and as many smallest values are left out;
    the others have equal weights. Otherwise like `median`, from the same paper; of fewer than
    ``1 / share`` clients none is left out.

    Args:
      share: of the owners' values, left out at each end.
      least_owners: as in `median`.

    Raises:
      InputError: a share outside [0, 0.5).
    """
    if not 0 <= share < 0.5:
        raise InputError(
            f"Update 'trimmed_mean' needs a share from 0 to less than 0.5, got {share}."
        )
    exact = fractions.Fraction(str(share))  # 0.29 of 100 is 29, which floating point misses

    def statistic(x: Float[Array, " c *s"], mask: Bool[Array, " c *s"]) -> Float[Array, "*s"]:
        clients = x.shape[0]
        cuts = jnp.asarray([math.floor(exact * n) for n in range(clients + 1)])
        count = jnp.sum(mask, axis=0)
        cut = cuts[count]
        position = trees.expand(jnp.arange(clients, dtype=count.dtype), x)
        inner = (position >= cut[None]) & (position < (count - cut)[None])
        total = jnp.sum(jnp.where(inner, _sort_masked(x, mask), 0), axis=0)
        return trees.safe_divide(total, (count - 2 * cut).astype(x.dtype), jnp.zeros(()))

    needs = math.ceil(1 / exact) if exact else 0
    return _coordinatewise(statistic, least_owners, needs=needs)


def masked_median(x: Float[Array, " c *s"], mask: Bool[Array, " c *s"]) -> Float[Array, "*s"]:
    """Median over clients of the entries in the mask; of an even number, the middle two's mean."""
    ascending, count = _sort_masked(x, mask), jnp.sum(mask, axis=0)

    def at(position: Array) -> Array:
        return jnp.take_along_axis(ascending, jnp.maximum(position, 0)[None], axis=0)[0]

    return 0.5 * at((count - 1) // 2) + 0.5 * at(count // 2)


def _sort_masked(x: Array, mask: Array) -> Array:
    """Sort over clients, with entries outside the mask last."""
    return jnp.sort(jnp.where(mask, x, jnp.inf), axis=0)


def _coordinatewise(
    statistic: Callable[[Array, Array], Array], least_owners: int, *, needs: int
) -> UpdateTransform:
    """Replace every entry by a statistic over the present clients that trained it.

    Args:
      statistic: ``(values [c, ...], owned) -> [...]``.
      least_owners: entries with fewer owners stay as they were sent to clients.
      needs: owners of whose values the statistic leaves any out.
    """
    if least_owners < 1:
        raise InputError(f"Robust statistics need least_owners of at least 1, got {least_owners}.")

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        def leaf(x0: Array, x: Array, mask: Array) -> Array:
            counted = jnp.broadcast_to(mask & trees.expand(weight > 0, mask), x.shape)
            found = jnp.where(counted, statistic(x, counted)[None], x)
            if least_owners == 1:
                return found
            few = jnp.sum(counted, axis=0) < least_owners
            return jnp.where(counted & few[None], x0, found)

        return jax.tree.map(leaf, start, trained, trainable), weight

    return UpdateTransform(apply=apply, stage="server", is_aggregate=True, needs_owners=needs)
