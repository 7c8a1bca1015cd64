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
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array
Params = Mapping[str, Any]
"""Nested dictionary of arrays, as Flax returns it."""


class LoRA(NamedTuple):
    """The two factors of one adapted layer, or their masks, gradients or moments."""

    a: Any  # [..., i, R]
    b: Any  # [..., R, o]


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
"""Trained multipliers of the components, ``[..., R]`` per path; ``()`` if a method has none."""

Kernels = dict[str, Array]
"""Base kernels that a method has changed, ``[..., i, o]`` per path."""


class ClientParams(NamedTuple):
    """The parameters that a client trains, or their gradients or masks."""

    adapter: Adapter
    head: Any  # parameters of the task head, a nested dictionary
    coefficients: Any = ()  # see `Coefficients`


class Batches(NamedTuple):
    """Examples of each client at each local step, as indices."""

    index: Any  # int32[c, s, n], rows of the data set
    valid: Any  # bool[c, s, n], false where a batch is not full
    steps: Any  # int32[c], local steps of the client
    longest: Any  # int32[c, s], tokens of the step's longest example
    tokens: Any  # int32[c, s], tokens of all examples of the step


class BatchShape(NamedTuple):
    """Compiled shape of a local step."""

    rows: int  # texts
    length: int  # tokens of the longest text
    tokens: int  # tokens of all texts together

    @property
    def padded(self) -> bool:
        """Whether every text may be as long as the longest."""
        return self.tokens == self.rows * self.length
