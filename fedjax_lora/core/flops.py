"""Count the operations of the matrix products in a function's trace."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from fedjax_lora.core.types import PyTree


def of(function: Callable[..., PyTree], *args: PyTree) -> int:
    """Count the floating-point operations of the matrix products in a call.

    A product and a sum are two operations. Loops count as often as they run, recomputation as often
    as it is done; everything but products (norms, activations, softmax) is left out.

    >>> import jax.numpy as jnp
    >>> of(lambda x, y: x @ y, jnp.zeros((2, 3)), jnp.zeros((3, 5)))
    60

    Args:
      function: is traced, not run.
      *args: arrays, or `jax.ShapeDtypeStruct` for them.

    Raises:
      ValueError: the function has a loop of unknown length with products in it.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (inner, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        summed = math.prod(left[axis] for axis in inner)
        return 2 * math.prod(equation.outvars[0].aval.shape) * summed
    inside = [_of_jaxpr(jaxpr) for jaxpr in _jaxprs(equation.params)]
    if name == "while" and any(inside):
        raise ValueError("A loop of unknown length computes products.")
    if name == "cond":
        return max(inside)
    return equation.params["length"] * sum(inside) if name == "scan" else sum(inside)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """Yield the functions inside an equation."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield inner
