"""How much arithmetic the training of a round is, and how fast a device does it.

A step's matrix products are counted by `fedjax_lora.runs.cost.flops`. (XLA's own cost analysis
agrees to a few per cent, but counts the body of a loop once, however often it runs.)
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core.types import BatchShape
from fedjax_lora.data.batch_shapes import first_fitting, step_sizes
from fedjax_lora.federated import Plan


def cohort_flops(
    plan: Plan, flops: Mapping[BatchShape, int], *, parts: int, clients_per_step: int
) -> int:
    """Operations of the part of a cohort that has the most, in its local training.

    Args:
      plan: of the round; `c` is divided by ``parts``.
      flops: of a client's step, by its shape, in the order in which a step looks for its own.
      parts: into which the cohort is divided, one for each place on the mesh's axis ``clients``.
      clients_per_step: clients of a part that step together, each padded to the shape of the
        largest.
    """
    work, size = plan.batches, len(plan.id) // parts
    clients_per_step, shapes = min(clients_per_step, size), list(flops)
    need = step_sizes(work)

    def of_wave(members: slice) -> int:
        total, steps = 0, work.steps[members]
        for t in range(int(steps.max())):
            of_all = np.where((t < steps)[:, None], need[members, t], 0).max(axis=0)
            total += len(steps) * flops[shapes[int(first_fitting(shapes, of_all))]]
        return total

    def of_part(begin: int) -> int:
        return sum(
            of_wave(slice(k, k + clients_per_step))
            for k in range(begin, begin + size, clients_per_step)
        )

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
