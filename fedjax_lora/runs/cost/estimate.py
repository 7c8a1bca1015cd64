"""Estimate what a run of a config needs, from shapes alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_lora import federated, lora
from fedjax_lora.core import trees
from fedjax_lora.core.target import current_target
from fedjax_lora.core.types import Adapter, BatchShape, ClientParams, Kernels, Params
from fedjax_lora.federated import AXIS, MODEL, FederatedState, optimizers, transforms
from fedjax_lora.federated.client_update import cohort_of
from fedjax_lora.federated.planning import Federation
from fedjax_lora.methods.base import ServerState
from fedjax_lora.runs.build import make_federation, make_round_spec
from fedjax_lora.runs.choices import resolve
from fedjax_lora.runs.compilation import RoundSpec
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.cost.memory import (
    Memory,
    activations,
    base_bytes,
    layer_bytes,
    layers_taken_out,
)
from fedjax_lora.runs.cost.round_flops import cohort_flops
from fedjax_lora.runs.cost.step_cost import step_flops
from fedjax_lora.runs.loading import Assets, execution_of
from fedjax_lora.runs.setup import Setup, set_up

FEW_ROUNDS = 5
"""Rounds whose plans the operations are averaged over."""


class Devices(NamedTuple):
    """The devices of a run.

    Attributes:
      kind: name of the type of device.
      clients: number of parts that the cohort is divided into.
      model: number of parts that the base is divided into.
      processes: number of processes that run the program together.
    """

    kind: str
    clients: int
    model: int
    processes: int


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
    setup = set_up(config, resolve(config), assets, execution_of(config))
    federation = make_federation(config, assets, setup)
    round_spec = make_round_spec(config, assets, setup)
    devices = _devices(round_spec.execution.mesh)
    shapes = _shapes(config, assets, setup)
    up, down = _traffic(config, federation, setup, shapes)
    flops = step_flops(round_spec, shapes.base, shapes.trained, shapes.data)
    return Needs(
        memory=_memory(assets, setup, federation, round_spec, shapes),
        up=up,
        down=down,
        rounds=config.federation.rounds,
        flops=flops[round_spec.shapes[-1]],
        devices=devices,
        shapes=round_spec.shapes,
        round_flops=_round_flops(setup, federation, round_spec, flops) / devices.model,
        dtype=config.model.dtype,
    )


class _Shapes(NamedTuple):
    """Shapes of the arrays of a run, as `jax.ShapeDtypeStruct`."""

    base: Params
    head: Params
    trained: ClientParams  # adapter and head of a client
    kernels: dict[str, Any]  # of the adapted layers, by path
    state: FederatedState
    data: Any  # training tokens


def _shapes(config: RunConfig, assets: Assets, setup: Setup) -> _Shapes:
    method, fed = setup.method, config.federation
    params, spec = _abstract(assets.model.params), method.spec
    head, base = params["head"], {name: part for name, part in params.items() if name != "head"}
    kernels = lora.kernels_of(base, spec)

    def init(adapter: Adapter, kernels: Kernels, head: Params) -> FederatedState:
        return federated.init_state(
            method,
            adapter,
            kernels,
            head,
            clients=fed.clients,
            heads=fed.heads,
            server_optimizer=setup.server_optimizer,
        )

    state = jax.eval_shape(init, spec.shapes(), kernels, head)
    trained = ClientParams(spec.shapes(), head)
    return _Shapes(base, head, trained, kernels, state, _abstract(assets.train))


def _memory(
    assets: Assets,
    setup: Setup,
    federation: Federation,
    round_spec: RoundSpec,
    shapes: _Shapes,
) -> Memory:
    """Estimate the bytes on one device."""
    execution, trained = round_spec.execution, trees.size_bytes(shapes.trained)
    with jax.numpy_dtype_promotion("standard"):  # as optax is written
        optimizer = optimizers.optimizer(round_spec.optimizer, clip=round_spec.clip)
        moments = jax.eval_shape(optimizer.init, shapes.trained)
    clients = federation.padded // _devices(execution.mesh).clients
    return Memory(
        base=base_bytes(shapes.base, execution.mesh),
        server=trees.size_bytes(shapes.state),
        data=trees.size_bytes(tuple(assets.train)),
        client=_start_bytes(setup, federation, shapes) + trees.size_bytes(shapes.head) + trained,
        working=3 * trained + trees.size_bytes(moments),
        activations=activations(round_spec, shapes.base, shapes.trained, shapes.data),
        layers=layers_taken_out(assets.model.config) * layer_bytes(shapes.base),
        cohort=clients,
        clients_per_step=min(execution.clients_per_step or 1, clients),
    )


def _start_bytes(setup: Setup, federation: Federation, shapes: _Shapes) -> int:
    """Return the bytes of what one client of a cohort begins with."""
    plan = federation.plan(0, setup.allocation.ranks, 1.0)
    cohort = cohort_of(setup.method.spec, plan, plan.weight, jax.random.key(0))
    count = len(plan.id)
    stored = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), shapes.state.clients
    )
    start = jax.eval_shape(setup.method.broadcast, shapes.state.server, stored.method, cohort)
    return trees.size_bytes(start) // count


def _round_flops(
    setup: Setup, federation: Federation, round_spec: RoundSpec, flops: Mapping[BatchShape, int]
) -> float:
    """Return the operations of a round's local training, mean over the first rounds."""
    execution = round_spec.execution
    of_rounds = [
        cohort_flops(
            federation.plan(t, setup.allocation.ranks, 1.0),
            flops,
            parts=_devices(execution.mesh).clients,
            clients_per_step=1 if execution.mode == "loop" else execution.clients_per_step or 1,
        )
        for t in range(FEW_ROUNDS)
    ]
    trainings = 1 if setup.method.select is None else 2  # a probe is a training of its own
    return trainings * float(np.mean(of_rounds))


def _devices(mesh: Mesh | None) -> Devices:
    clients, model = (1, 1) if mesh is None else (mesh.shape[AXIS], mesh.shape[MODEL])
    target = current_target()
    return Devices(target.kind, clients, model, target.processes)


def _abstract(tree: Any) -> Any:
    """Return a tree with `jax.ShapeDtypeStruct` leaves."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _traffic(
    config: RunConfig, federation: Federation, setup: Setup, shapes: _Shapes
) -> tuple[float, float]:
    """Return the bytes up and down, means over the rounds, with the clients' initial ranks."""
    method = setup.method
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
