"""Dot-product attention of encoders and decoders."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attend(
    query: Float[Array, "n t heads d"],
    key: Float[Array, "n s kv d"],
    value: Float[Array, "n s kv d"],
    mask: Bool[Array, "n 1 #t s"],
    *,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "n t heads d"]:
    """Compute masked dot-product attention.

    Args:
      query: one per token and head.
      key: with fewer heads than `query`, each is shared by a group of neighbouring query heads.
      value: as `key`.
      mask: True where a token (third axis, or all tokens if its size is 1) may attend.
      drop: dropout of the attention weights; None applies none and allows fused kernels.
    """
    if drop is None:
        # JAX's attention promotes bfloat16 to float32, which strict promotion rules refuse.
        with jax.numpy_dtype_promotion("standard"):
            return jax.nn.dot_product_attention(query, key, value, mask=mask)
    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * query.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    weights = drop(jax.nn.softmax(scores).astype(value.dtype))
    return jnp.einsum("nhqk,nkhd->nqhd", weights, value)
