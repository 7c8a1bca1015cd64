"""How much arithmetic the training of a round is, and how fast a device does it.

Counted are the matrix products of a program, as JAX traces it: nearly all of what a transformer
computes. XLA's own cost analysis agrees where there are no loops, but counts the body of a loop
once, however often it runs (tested).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.rounds import Plan

Shape = tuple[int, int]
"""Examples and the number of the length bucket of a step."""


def product_flops(fn: Callable[..., Any], *args: Any) -> int:
    """Operations in the matrix products of a function, two for a multiplication with its addition.

    The longest branch counts of a choice, and one turn of a loop whose number of turns is data.

    >>> product_flops(lambda x: x @ x, jax.ShapeDtypeStruct((10, 10), jnp.float32))
    2000
    """
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(sizes)
            continue
        inside = [_of_jaxpr(inner) for value in params.values() for inner in _programs(value)]
        if inside:
            turns = params["length"] if name == "scan" else 1
            total += turns * (max(inside) if name == "cond" else sum(inside))
    return total


def _programs(value: Any) -> Iterator[Any]:
    """The jaxprs in a parameter of an equation."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from _programs(item)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield from _programs(value.jaxpr)


def cohort_flops(
    plan: Plan, flops: Mapping[Shape, int], rows: Sequence[int], *, parts: int, wave: int
) -> int:
    """Operations of the part of a cohort that has the most, in its local training.

    Args:
      plan: of the round; `c` is divided by ``parts``.
      flops: of a client's step, by its shape.
      rows: batch sizes that are compiled, ascending.
      parts: into which the cohort is divided, one for each place on the mesh's axis ``clients``.
      wave: clients of a part that step together, each padded to the shape of the largest.
    """
    work, size = plan.batches, len(plan.id) // parts
    counts = work.valid.sum(axis=2)

    def of_wave(members: slice) -> int:
        total, steps = 0, work.steps[members]
        for t in range(int(steps.max())):
            longest = int(np.where(t < steps, work.bucket[members, t], 0).max())
            fits = int(np.searchsorted(rows, counts[members, t].max()))
            total += len(steps) * flops[rows[fits], longest]
        return total

    def of_part(begin: int) -> int:
        return sum(of_wave(slice(k, k + wave)) for k in range(begin, begin + size, wave))

    return max(of_part(part * size) for part in range(parts))


def product_rate(dtype: Any, *, seconds: float = 0.3) -> float:
    """Operations a second of a device in a large matrix product, measured for ``seconds``."""
    size = 1024 if jax.default_backend() == "cpu" else 4096
    multiply = jax.jit(jnp.matmul)
    x = jnp.ones((size, size), dtype)
    jax.block_until_ready(multiply(x, x))
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        jax.block_until_ready(multiply(x, x))
        count += 1
    return 2 * size**3 * count / taken
