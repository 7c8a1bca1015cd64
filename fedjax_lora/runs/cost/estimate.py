"""Estimate what a run of a config needs, from shapes alone."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core import trees
from fedjax_lora.core.types import BatchShape
from fedjax_lora.federated import transforms
from fedjax_lora.methods.base import ServerState
from fedjax_lora.runs.choices import resolve
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.cost.clients_per_step import choose_clients_per_step
from fedjax_lora.runs.cost.memory import Memory, memory_of
from fedjax_lora.runs.cost.outline import Devices, Outline, devices_of, make_outline
from fedjax_lora.runs.cost.round_flops import cohort_sum
from fedjax_lora.runs.loading import Assets, execution_of
from fedjax_lora.runs.setup import set_up
from fedjax_lora.runs.step_cost import step_flops

FEW_ROUNDS = 5
"""Rounds whose plans the operations are averaged over."""


class Needs(NamedTuple):
    """What a run needs.

    Attributes:
      memory: bytes on a device.
      up: uplink bytes of all clients of a cohort, mean over the rounds.
      down: downlink bytes of all clients of a cohort, mean over the rounds.
      rounds: number of rounds.
      flops: operations of the matrix products in one client's step, with a full batch of the
        longest texts.
      devices: the devices of the run.
      shapes: shapes of the local steps that are compiled.
      round_flops: operations of the matrix products in a round's local training, on the device
        with the most of them; mean over the first rounds.
      dtype: dtype of these products.
    """

    memory: Memory
    up: float
    down: float
    rounds: int
    flops: int
    devices: Devices
    shapes: tuple[BatchShape, ...]
    round_flops: float
    dtype: str


def needs(config: RunConfig, assets: Assets) -> Needs:
    """Estimate what a run of a config needs, from shapes alone.

    Args:
      config: the run.
      assets: its data and model; the model's parameters may be shapes alone.

    Raises:
      InputError: as for a run.
    """
    return needs_of(outline_run(config, assets))


def outline_run(
    config: RunConfig, assets: Assets, *, tell: Callable[[str], None] = lambda sentence: None
) -> Outline:
    """Outline the rounds of a run as it would be built here.

    Args:
      config: the run.
      assets: its data and model; the model's parameters may be shapes alone.
      tell: is told in a sentence what is chosen for the device.

    Raises:
      InputError: as for a run.
    """
    setup = set_up(config, resolve(config), assets, execution_of(config))
    config, setup = choose_clients_per_step(config, assets, setup, tell=tell)
    return make_outline(config, assets, setup)


def needs_of(outline: Outline) -> Needs:
    """Estimate what the run of an outline needs."""
    round_spec, shapes = outline.round_spec, outline.shapes
    devices = devices_of(round_spec.execution.mesh)
    up, down = _traffic(outline)
    flops = step_flops(round_spec, shapes.base, shapes.trained, shapes.data)
    return Needs(
        memory=memory_of(outline),
        up=up,
        down=down,
        rounds=outline.config.federation.rounds,
        flops=flops[round_spec.shapes[-1]],
        devices=devices,
        shapes=round_spec.shapes,
        round_flops=round_sum(outline, flops) / devices.model,
        dtype=outline.config.model.dtype,
    )


def round_sum(outline: Outline, by_shape: Mapping[BatchShape, float]) -> float:
    """Sum a cost of the local steps of a round, on the device with most; mean of the first rounds.

    Args:
      outline: the rounds.
      by_shape: the cost of one client's step, by the shape of the step.
    """
    execution = outline.round_spec.execution
    of_rounds = [
        cohort_sum(
            outline.plan(t),
            by_shape,
            parts=devices_of(execution.mesh).clients,
            clients_per_step=1 if execution.mode == "loop" else execution.clients_per_step or 1,
        )
        for t in range(FEW_ROUNDS)
    ]
    return outline.trainings * float(np.mean(of_rounds))


def _traffic(outline: Outline) -> tuple[float, float]:
    """Return the bytes up and down, means over the rounds, with the clients' initial ranks."""
    config, federation, setup = outline.config, outline.federation, outline.setup
    shapes, method = outline.shapes, setup.method
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape), tree)  # noqa: E731
    kernels = {
        path: jax.ShapeDtypeStruct(kernel.shape, jnp.float32)
        for path, kernel in shapes.kernels.items()
    }
    # Compiled, so that the zeros, which the method's own state does not need, are never allocated.
    own = jax.jit(lambda: method.init(zeros(method.spec.shapes()), zeros(kernels)).state)()
    server = ServerState(method.spec.shapes(), {}, own)
    head = shapes.head if config.federation.heads == "average" else {}
    up, down = [], []
    for t in range(config.federation.rounds):
        rank = setup.allocation.ranks[federation.sample(t)]
        traffic = method.traffic(server, rank, t)
        up.append(transforms.uplink_bytes(setup.updates, traffic, method.spec, head).sum())
        down.append(traffic.down.sum() + len(rank) * trees.size_bytes(head))
    return float(np.mean(up)), float(np.mean(down))
