"""Types that all parts share, and one letter per dimension.

The letters of annotations, comments and docstrings:

====  ==========================================  ====  =============================
`N`   clients in the federation                   `L`   stacked layers
`c`   clients in this round's cohort              `R`   maximum rank, the stored rank
`w`   clients trained at once on a device         `r`   a client's rank, `r <= R`
`s`   local steps                                 `k`   stacked rank, sum of `r`
`n`   examples in a batch                         `i`   input features of a layer
`t`   tokens                                      `o`   output features of a layer
`E`   examples in a data set
====  ==========================================  ====  =============================

An adapted layer computes ``y = x @ W + ((x @ a) * gain) @ b`` with ``a: [i, R]``, ``b: [R, o]``
and ``gain: [R]``; stacked layers put `L` in front, a cohort puts `c` in front of that.
*Component* `j` is column `j` of `a` with row `j` of `b`: one rank-one module.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np

Array = jax.Array
Key = jax.Array

AnyArray: TypeAlias = jax.Array | np.ndarray
"""An array on a device, or on the host."""

PyTree: TypeAlias = Any
"""Any pytree of arrays: its structure is that of the caller's data, model or method.

Also used for one leaf of parameters where it may be stored in several ways: a kernel is an array, a
`jax.ShapeDtypeStruct`, a quantized `qwix.QArray`, or a tuple with one of these per layer.
"""

Params: TypeAlias = Mapping[str, PyTree]
"""Nested dictionaries of arrays, as Flax returns parameters."""


@runtime_checkable
class HasShape(Protocol):
    """Anything with a shape and a dtype: an array, a `jax.ShapeDtypeStruct`, a `qwix.QArray`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        ...

    @property
    def dtype(self) -> Any:
        """Its dtype, of NumPy or of JAX."""
        ...


class LoRA(NamedTuple):
    """The two factors of one adapted layer, or a leaf for each: mask, gradient, shape, size."""

    a: PyTree  # [..., i, R]
    b: PyTree  # [..., R, o]


class Rates(NamedTuple):
    """Multipliers of the learning rate, per kind of parameter."""

    a: float = 1.0
    b: float = 1.0
    coefficients: float = 1.0


EQUAL_RATES = Rates()
"""All parameters use the learning rate itself."""

Adapter = dict[str, LoRA]
"""Factors by the path of the layer they adapt, for example ``encoder/layers/attention/query``."""

Gain = dict[str, Array]
"""Multiplier of each component in the forward pass: ``[..., R]`` per path; 0 disables it."""

Coefficients = Gain | tuple[()]
"""Trained numbers between the factors, per path; ``()`` if a method has none.

``[..., R]`` multiply the components; ``[..., R, m]`` are the `R / m` blocks ``m x m`` of a core
matrix, ``a @ block_diagonal(blocks) @ b``, one above the other: row `j` belongs to component `j`.
"""

Kernels = dict[str, Array]
"""Base kernels that a method has changed, ``[..., i, o]`` per path."""


class ClientParams(NamedTuple):
    """The parameters that a client trains, or their gradients or masks."""

    adapter: Adapter
    head: Params  # parameters of the task head
    coefficients: Coefficients = ()


class Batches(NamedTuple):
    """Examples of each client at each local step, as indices."""

    index: AnyArray  # int32[c, s, n], rows of the data set
    valid: AnyArray  # bool[c, s, n], false where a batch is not full
    steps: AnyArray  # int32[c], local steps of the client
    longest: AnyArray  # int32[c, s], tokens of the step's longest example
    tokens: AnyArray  # int32[c, s], tokens of all examples of the step


class BatchShape(NamedTuple):
    """Compiled shape of a local step."""

    rows: int  # texts
    length: int  # tokens of the longest text
    tokens: int  # tokens of all texts together

    @property
    def padded(self) -> bool:
        """Whether every text may be as long as the longest."""
        return self.tokens == self.rows * self.length
