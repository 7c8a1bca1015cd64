"""Sums of products of which each client owns some components."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from fedjax_lora.core.subspace import matmul
from fedjax_lora.core.types import Array

LEVELS = 4
"""Ranks that a client's product is rounded up to: quarters of the stored one."""


def sum_of_products(
    a: Float[Array, "c i R"], b: Float[Array, "c R o"], weight: Float[Array, "c R"]
) -> Float[Array, "i o"]:
    """Compute ``sum_k a_k @ diag(weight_k) @ b_k`` without the components that a client lacks.

    One client after another: the product of its components up to the last one whose weight is not
    0, rounded up to a quarter of `R`. No stack of all clients is made. Small ranks gain nothing,
    because every product then reads and writes the sum for little work.

    Args:
      a: one matrix per client.
      b: the other.
      weight: of each component. What has weight 0 contributes exact zeros, even if it is not
        finite.
    """
    rank = a.shape[-1]
    levels = sorted({-(-rank * quarter // LEVELS) for quarter in range(LEVELS + 1)})
    owned = jnp.max(jnp.where(weight != 0, jnp.arange(1, rank + 1), 0), axis=1)
    level = jnp.searchsorted(jnp.asarray(levels), owned)

    def add(upto: int, total: Array, a: Array, b: Array, w: Array) -> Array:
        a, b, w = a[:, :upto], b[:upto], w[:upto]
        used = w != 0
        a, b = jnp.where(used[None], a * w[None], 0), jnp.where(used[:, None], b, 0)
        return total + matmul(a, b) if upto else total

    branches = [functools.partial(add, upto) for upto in levels]

    def client(total: Array, own: tuple[Array, ...]) -> tuple[Array, None]:
        number, *factors = own
        return jax.lax.switch(number, branches, total, *factors), None

    start = jnp.zeros((a.shape[1], b.shape[2]), a.dtype)
    return jax.lax.scan(client, start, (level, a, b, weight))[0]
