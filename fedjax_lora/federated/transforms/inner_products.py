"""Inner products of the clients' updates of the model, from the factors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.linalg import matmul
from fedjax_lora.core.types import ClientParams, Gain


def inner_products(
    start: ClientParams,
    trained: ClientParams,
    trainable: ClientParams,
    gain: Gain,
    weight: Float[Array, " c"],
) -> Float[Array, "c c"]:
    """Inner products of the clients' updates of the model, those of absent clients 0.

    Args:
      start: parameters before local training, ``[c, ...]``.
      trained: parameters after it.
      trainable: booleans that broadcast against both; other entries count as unchanged.
      gain: multiplier of each component, ``[c, (L,) R]`` by path.
      weight: 0 for absent clients, whose values may be arbitrary.
    """
    present = weight > 0
    sent = jax.tree.map(
        lambda x0, x, m: jnp.where(m & trees.expand(present, m), x, x0), start, trained, trainable
    )
    old, new = (lora.fold(x.adapter, x.coefficients) for x in (start, sent))
    total = jnp.zeros((weight.shape[0],) * 2)
    for path, (a, b) in new.items():
        a0, b0 = old[path]
        g = gain[path][..., None, :]
        # a b - a0 b0 = (a - a0) b + a0 (b - b0): differences of stored values, exactly 0 if equal.
        left = jnp.concatenate([(a - a0) * g, a0 * g], axis=-1)
        total += _of_products(left, jnp.concatenate([b, b - b0], axis=-2))
    for x0, x in zip(*map(jax.tree.leaves, (start.head, sent.head)), strict=True):
        flat = (x - x0).reshape(len(x), -1)
        total += matmul(flat, flat.T)
    return total


def _of_products(left: Float[Array, "c *l i k"], right: Float[Array, "c *l k o"]) -> Array:
    """Inner products of ``left @ right`` of any two clients, one client after another."""

    def with_one(pair: tuple[Array, Array]) -> Array:
        one, other = pair
        grams = matmul(one.mT, left) * matmul(other, right.mT)
        return jnp.sum(grams, axis=tuple(range(1, grams.ndim)))

    return jax.lax.map(with_one, (left, right))
