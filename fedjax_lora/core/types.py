"""Shapes and names used everywhere.

One letter per dimension, in annotations, comments and docstrings:

====  ==========================================  ====  =============================
`N`   clients in the federation                   `L`   stacked layers
`c`   clients in this round's cohort              `R`   maximum rank, the stored rank
`w`   clients trained at once (a wave)            `r`   a client's rank, `r <= R`
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
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array
Params = Mapping[str, Any]
"""A nested dictionary of arrays, as Flax makes it."""


class LoRA(NamedTuple):
    """The two factors of one adapted layer (or their masks, gradients, moments, ...)."""

    a: Any  # [..., i, R]
    b: Any  # [..., R, o]


class Rates(NamedTuple):
    """What multiplies the learning rate, by what is trained."""

    a: float = 1.0
    b: float = 1.0
    coefficients: float = 1.0


EQUAL_RATES = Rates()
"""Everything learns at the learning rate."""

Adapter = dict[str, LoRA]
"""Factors by the path of the layer they adapt, for example ``encoder/layers/attention/query``."""

Gain = dict[str, Array]
"""What the forward pass multiplies each component by: ``[..., R]`` per path. 0 = inactive."""

Coefficients = Gain | tuple[()]
"""Multipliers of the components that are trained too, ``[..., R]`` per path; ``()`` for most."""

Kernels = dict[str, Array]
"""Base kernels by path, ``[..., i, o]``: those a method has changed."""


class ClientParams(NamedTuple):
    """What a client trains (or its gradient, its mask, ...)."""

    adapter: Adapter
    head: Any  # parameters of the task head, a nested dictionary
    coefficients: Any = ()  # see `Coefficients`


class Batches(NamedTuple):
    """Which examples each client sees at each local step."""

    index: Any  # int32[c, s, n], rows of the data set
    valid: Any  # bool[c, s, n], false where a batch is not full
    steps: Any  # int32[c], steps the client takes
    longest: Any  # int32[c, s], tokens of the longest of the step's examples
    tokens: Any  # int32[c, s], tokens of all of them


class BatchShape(NamedTuple):
    """What fits into a local step: texts, tokens of the longest, and tokens of all of them."""

    rows: int
    length: int
    tokens: int

    @property
    def padded(self) -> bool:
        """Whether there is room for every text to be as long as the longest."""
        return self.tokens == self.rows * self.length
