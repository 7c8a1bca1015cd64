"""Relative positions of T5 (arXiv 1910.10683): a learned bias by the distance of two tokens."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BUCKETS = 32
_FARTHEST = 128  # distances from here on share a bucket


class RelativePositions(nn.Module):
    """A bias of attention scores for each head and distance."""

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
