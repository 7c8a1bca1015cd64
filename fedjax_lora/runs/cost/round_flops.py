"""Operations of a round's local training, and the speed of a device.

A step's matrix products are counted by `fedjax_lora.core.flops`. (XLA's own cost analysis
agrees to a few per cent, but counts the body of a loop once, however often it runs.)
"""

import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fedjax_lora.core.target import current_target
from fedjax_lora.core.types import BatchShape
from fedjax_lora.data.batch_shapes import first_fitting, step_sizes
from fedjax_lora.federated import Plan


def cohort_sum(
    plan: Plan, by_shape: Mapping[BatchShape, float], *, parts: int, clients_per_step: int
) -> float:
    """Sum a cost of a cohort's local steps, in the part of the cohort that has the most.

    Args:
      plan: plan of the round; `c` is divisible by ``parts``.
      by_shape: cost of a client's step (its operations, for example) by shape, in the order in
        which a step looks for its shape.
      parts: parts that the cohort is divided into, one for each position on the mesh axis
        ``clients``.
      clients_per_step: clients of a part that train at the same time, each padded to the shape of
        the largest.
    """
    work, size = plan.batches, len(plan.id) // parts
    clients_per_step, shapes = min(clients_per_step, size), list(by_shape)
    sizes = step_sizes(work)

    def of_group(members: slice) -> float:
        total, steps = 0.0, work.steps[members]
        for t in range(int(steps.max())):
            largest = np.where((t < steps)[:, None], sizes[members, t], 0).max(axis=0)
            total += len(steps) * by_shape[shapes[int(first_fitting(shapes, largest))]]
        return total

    def of_part(begin: int) -> float:
        return sum(
            of_group(slice(k, k + clients_per_step))
            for k in range(begin, begin + size, clients_per_step)
        )

    return max(of_part(part * size) for part in range(parts))


def product_rate(dtype: DTypeLike, *, seconds: float = 0.3) -> float:
    """Measure the operations a second of a device in a large matrix product."""
    size = 1024 if current_target().is_cpu else 4096
    multiply = jax.jit(jnp.matmul)
    x = jnp.ones((size, size), dtype)
    jax.block_until_ready(multiply(x, x))
    count, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        jax.block_until_ready(multiply(x, x))
        count += 1
    return 2 * size**3 * count / taken
