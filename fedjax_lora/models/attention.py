"""Dot-product attention of encoders and decoders."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_lora.core.target import current_target


def attend(
    query: Float[Array, "n t heads d"],
    key: Float[Array, "n s kv d"],
    value: Float[Array, "n s kv d"],
    mask: Bool[Array, "n 1 #t s"],
    *,
    bias: Float[Array, "#n heads t s"] | None = None,
    softcap: float | None = None,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "n t heads d"]:
    """Compute masked dot-product attention.

    Without dropout it is computed again in the backward pass on accelerators, where keeping scores
    and weights costs more time than the two products; a CPU gains nothing by that.

    Args:
      query: one per token and head.
      key: with fewer heads than `query`, each is shared by a group of neighbouring query heads.
      value: as `key`.
      mask: True where a token (third axis, or all tokens if its size is 1) may attend.
      bias: float32, added to the scores; None adds nothing.
      softcap: limit of the size of scores, by a tanh (arXiv 2408.00118); None for none.
      drop: dropout of the attention weights; None applies none.
    """
    if drop is None and softcap is None:
        if current_target().is_cpu:
            return _attend(query, key, value, mask, bias)
        return jax.checkpoint(_attend)(query, key, value, mask, bias)
    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    scores = scores if bias is None else scores + bias
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    weights = weights if drop is None else drop(weights)
    return jnp.einsum("nhqk,nkhd->nqhd", weights, value)


def _attend(query: Array, key: Array, value: Array, mask: Array, bias: Array | None) -> Array:
    # JAX's attention promotes bfloat16 to float32, which strict promotion rules refuse. It is plain
    # XLA on every platform unless an implementation is asked for.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask)
