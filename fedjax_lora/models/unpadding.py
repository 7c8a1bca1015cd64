"""A batch without its padding: one row per real token, whatever the lengths of the texts.

Everything that is done token by token (projections, norms, feed-forward) is done on the rows; only
attention sees texts, for which rows are put back in their places. Both ways are gathers, and so are
their gradients: each undoes the other, and XLA's scatters are slow.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Layout(NamedTuple):
    """Where the states of a batch's tokens are; see `layout`.

    Attributes:
      mask: True for tokens, False for padding.
      token: each row's token, counted over the whole padded batch; ``n * t`` for rows to spare.
        None if states are those of the padded batch.
      row: each token's row; the number of rows for padding.
    """

    mask: Bool[Array, "n t"]
    token: Int[Array, "rows"] | None
    row: Int[Array, "n*t"] | None

    def texts(self, x: Float[Array, "*rows h"]) -> Float[Array, "n t h"]:
        """States as texts; those of padding are 0 if they were left out."""
        if self.token is None:
            return x
        return _rows(x, self.row, self.token).reshape(*self.mask.shape, x.shape[-1])

    def states(self, x: Float[Array, "n t h"]) -> Float[Array, "*rows h"]:
        """The inverse of `texts`; rows to spare are 0."""
        if self.token is None:
            return x
        return _rows(x.reshape(-1, x.shape[-1]), self.token, self.row)


def layout(mask: Bool[Array, "n t"], at: Int[Array, "rows"] | None) -> Layout:
    """Number the real tokens.

    Args:
      mask: True for them.
      at: their places in the flattened batch, ascending, then ``n * t`` as often as there are rows
        to spare. None keeps the padded batch.
    """
    if at is None:
        return Layout(mask, None, None)
    real = mask.reshape(-1)
    row = jnp.where(real, jnp.cumsum(real, dtype=jnp.int32) - 1, at.size)
    return Layout(mask, at, row)


@jax.custom_vjp
def _rows(x: Array, index: Array, inverse: Array) -> Array:
    """Rows of `x`, 0 beyond its end; `inverse` takes them back."""
    return x.at[index].get(mode="fill", fill_value=0)


def _forward(x: Array, index: Array, inverse: Array) -> tuple[Array, tuple[Array, Array]]:
    return _rows(x, index, inverse), (index, inverse)


def _backward(both: tuple[Array, Array], gradient: Array) -> tuple[Array, np.ndarray, np.ndarray]:
    index, inverse = both
    nothing = lambda i: np.zeros(i.shape, jax.dtypes.float0)  # noqa: E731
    return _rows(gradient, inverse, index), nothing(index), nothing(inverse)


_rows.defvjp(_forward, _backward)
