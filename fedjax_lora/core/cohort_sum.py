"""Weighted sums over the clients of a cohort."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from fedjax_lora.core.types import Array

GROUP = 4
"""Clients that are added up in one pass over the sum: more passes read and write it more often, and
larger groups read from more places at once than a processor follows."""


def weighted_sum(x: Float[Array, " c *n"], weight: Float[Array, "c ..."]) -> Float[Array, "*n"]:
    """Compute ``sum_k weight[k] * x[k]``.

    On a CPU a few clients are added at a time, so that memory is read in its order; XLA's own
    reduction over the first axis reads a number of every client before it writes one. On
    accelerators, and on a mesh, whose devices hold other clients, it is that reduction.

    Args:
      x: one array per client.
      weight: broadcasts against ``x``. What has weight 0 contributes exact zeros, even if it is not
        finite.
    """
    if not jax.sharding.get_abstract_mesh().empty:
        return _at_once(x, weight)
    return jax.lax.platform_dependent(x, weight, cpu=_in_groups, default=_at_once)


def _at_once(x: Array, weight: Array) -> Array:
    return jnp.sum(_terms(x, weight), axis=0)


def _in_groups(x: Array, weight: Array) -> Array:
    count = x.shape[0]

    def client(k: Array | int) -> Array:
        take = lambda y: jax.lax.dynamic_index_in_dim(y, k, keepdims=False)  # noqa: E731
        return _terms(take(x), take(weight))

    def add(group: Array | int, total: Array) -> Array:
        for k in range(GROUP):
            total = total + client(group * GROUP + k)
        return total

    total = jnp.zeros(x.shape[1:], jnp.result_type(x, weight))
    total = jax.lax.fori_loop(0, count // GROUP, add, total)
    for k in range(count // GROUP * GROUP, count):
        total = total + client(k)
    return total


def _terms(x: Array, weight: Array) -> Array:
    return jnp.where(weight != 0, weight * x, 0)
