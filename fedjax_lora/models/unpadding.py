"""Unpadded batches: one row per token, without rows for padding.

All operations on single tokens (projections, norms, feed-forward) work on the rows; only attention
works on texts, for which the rows are moved back to their positions. Both directions and their
gradients are gathers, each the inverse of the other, because XLA's scatters are slow.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Layout(NamedTuple):
    """Mapping between rows and tokens of a batch; see `layout`.

    Attributes:
      mask: True for tokens, False for padding.
      token: index of each row's token in the flattened padded batch; ``n * t`` for spare rows. None
        if the batch is kept padded.
      row: row of each token; the number of rows for padding.
    """

    mask: Bool[Array, "n t"]
    token: Int[Array, " rows"] | None
    row: Int[Array, " n*t"] | None

    def texts(self, x: Float[Array, "*rows h"]) -> Float[Array, "n t h"]:
        """Arrange rows as padded texts, with 0 for padding."""
        if self.token is None:
            return x
        return _rows(x, self.row, self.token).reshape(*self.mask.shape, x.shape[-1])

    def states(self, x: Float[Array, "n t h"]) -> Float[Array, "*rows h"]:
        """Arrange padded texts as rows, the inverse of `texts`; spare rows are 0."""
        if self.token is None:
            return x
        return _rows(x.reshape(-1, x.shape[-1]), self.token, self.row)


def layout(mask: Bool[Array, "n t"], at: Int[Array, " rows"] | None) -> Layout:
    """Compute the layout of a batch.

    Args:
      mask: True for tokens, False for padding.
      at: ascending indices of the tokens in the flattened batch, followed by ``n * t`` for every
        spare row. None keeps the batch padded.
    """
    if at is None:
        return Layout(mask, None, None)
    real = mask.reshape(-1)
    row = jnp.where(real, jnp.cumsum(real, dtype=jnp.int32) - 1, at.size)
    return Layout(mask, at, row)


@jax.custom_vjp
def _rows(x: Array, index: Array, inverse: Array) -> Array:
    """Gather rows of `x`, 0 beyond its end; `inverse` gathers them back, for the gradient."""
    return x.at[index].get(mode="fill", fill_value=0)


def _forward(x: Array, index: Array, inverse: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rows(x, index, inverse), (index, inverse)


def _backward(
    indices: tuple[Array, Array], gradient: Array
) -> tuple[Array, np.ndarray, np.ndarray]:
    index, inverse = indices
    no_gradient = lambda i: np.zeros(i.shape, jax.dtypes.float0)  # noqa: E731
    return _rows(gradient, inverse, index), no_gradient(index), no_gradient(inverse)


_rows.defvjp(_forward, _backward)
