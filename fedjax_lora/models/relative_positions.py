"""Attention by the distance of two tokens: the bias of T5 and the terms of DeBERTa."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BUCKETS = 32
_FARTHEST = 128  # distances from here on share a bucket


class RelativePositions(nn.Module):
    """A bias of attention scores for each head and distance (arXiv 1910.10683)."""

    heads: int

    @nn.compact
    def __call__(self, tokens: int) -> Float[Array, "1 {self.heads} {tokens} {tokens}"]:
        """Look up the float32 bias of each pair of a text's tokens."""
        at = np.arange(tokens)
        table = nn.Embed(BUCKETS, self.heads, name="bias")
        values = table(jnp.asarray(buckets(at[None, :] - at[:, None])))
        return values.astype(jnp.float32).transpose(2, 0, 1)[None]


def buckets(distance: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    """Map distances, negative ones to tokens before, to buckets: exact if near, else logarithmic.

    >>> buckets(np.array([-200, -8, -1, 0, 1, 7, 8, 200])).tolist()
    [15, 8, 1, 0, 17, 23, 24, 31]
    """
    half, exact = BUCKETS // 2, BUCKETS // 4
    size = np.abs(distance)
    # float32, as in the implementation that models were trained with.
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    far = exact + (ratio / np.float32(math.log(_FARTHEST / exact)) * exact).astype(np.int32)
    near = np.where(size < exact, size, np.minimum(far, half - 1))
    return (near + np.where(distance > 0, half, 0)).astype(np.int32)


class Distances(NamedTuple):
    """Embeddings of distances for disentangled attention.

    Attributes:
      states: embeddings of the buckets, in the compute dtype.
      rows: bucket of the distance between a query's token (first axis) and a key's.
    """

    states: Float[Array, "buckets h"]
    rows: np.ndarray


def distance_rows(tokens: int, buckets: int, longest: int) -> np.ndarray:
    """Bucket of the distance of every two tokens, ``int32[tokens, tokens]`` (arXiv 2006.03654).

    Distances up to half of the buckets have one each, longer ones share them by their logarithm.

    Args:
      tokens: number of tokens of the texts.
      buckets: buckets on each side; the result is between 0 and ``2 * buckets - 1``.
      longest: the distance that is in the last bucket.
    """
    at = np.arange(tokens)
    apart = at[:, None] - at[None, :]
    half = buckets // 2
    near = (apart < half) & (apart > -half)
    size = np.where(near, half - 1, np.abs(apart)).astype(np.float32)
    # float32 and this order, as in the implementation that models were trained with.
    scale = np.log(np.float32((longest - 1) / half))
    log = np.ceil(np.log(size / np.float32(half)) / scale * np.float32(half - 1)) + half
    bucket = np.where(size <= half, apart, log * np.sign(apart)).astype(np.int64)
    return np.clip(bucket + buckets, 0, 2 * buckets - 1).astype(np.int32)


def disentangled_bias(
    query: Float[Array, "n q heads d"],
    key: Float[Array, "n t heads d"],
    far_query: Float[Array, "buckets heads d"],
    far_key: Float[Array, "buckets heads d"],
    rows: np.ndarray,
) -> Float[Array, "n heads q t"]:
    """Terms of content and distance of disentangled attention, float32 (arXiv 2006.03654).

    Args:
      query: of the first tokens of each text, or of all.
      key: of all tokens.
      far_query: projected embeddings of the buckets of distances.
      far_key: likewise.
      rows: from `distance_rows`.
    """
    rows = rows[: query.shape[1]]
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    by_query = dot("nqhd,bhd->nhqb", query, far_key)
    by_key = dot("nkhd,bhd->nhkb", key, far_query)
    content = jnp.take_along_axis(by_query, jnp.asarray(rows)[None, None], axis=-1)
    distance = jnp.take_along_axis(by_key, jnp.asarray(rows.T)[None, None], axis=-1)
    return (content + distance.swapaxes(-1, -2)) * (3 * query.shape[-1]) ** -0.5
