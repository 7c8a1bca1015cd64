"""What a run of a config needs, from shapes alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_lora import federated
from fedjax_lora.core import trees
from fedjax_lora.core.types import BatchShape, ClientParams, Params
from fedjax_lora.federated import AXIS, MODEL, FederatedState, optimizers, transforms
from fedjax_lora.federated.client_update import cohort_of
from fedjax_lora.federated.planning import Federation
from fedjax_lora.methods.base import ServerState
from fedjax_lora.runs.build import Layout, arrange, lay_out
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
from fedjax_lora.runs.loading import Assets

FEW_ROUNDS = 5
"""Whose plans are looked at."""


class Devices(NamedTuple):
    """What a run is spread over.

    Attributes:
      kind: of a device.
      clients: parts the cohort is divided into.
      model: parts the base is divided into.
      processes: that run the program together.
    """

    kind: str
    clients: int
    model: int
    processes: int


class Needs(NamedTuple):
    """What a run needs.

    Attributes:
      memory: of a device.
      up: bytes that all clients of a cohort send, mean over the rounds.
      down: bytes that they receive.
      rounds: of the run.
      flops: of the matrix products in one client's step, with a full batch of the longest texts.
      devices: it runs on.
      shapes: of the steps that are compiled.
      round_flops: of the matrix products in a round's local training, on the device that has the
        most of them; mean over the first rounds.
      dtype: of these products.
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
    """What a run of this config will need.

    Args:
      config: the run.
      assets: its data and model; the model's parameters may be shapes alone.

    Raises:
      InputError: as for a run.
    """
    layout = lay_out(config, assets)
    federation, recipe = arrange(config, assets, layout)
    method, execution = recipe.make_method(), recipe.execution
    fed, spec = config.federation, layout.spec
    params = _abstract(assets.model.params)
    head, base = params["head"], {name: part for name, part in params.items() if name != "head"}
    kernels = {target.path: trees.flat(base)[f"{target.path}/kernel"] for target in spec.targets}
    state: FederatedState = jax.eval_shape(
        lambda adapter, kernels, head: federated.init_state(
            method, adapter, kernels, head, clients=fed.clients, heads=fed.heads,
            server_optimizer=layout.server_optimizer,
        ),
        spec.shapes(), kernels, head,
    )  # fmt: skip
    plan = federation.plan(0, layout.allocated.ranks, 1.0)
    cohort = cohort_of(spec, plan, plan.weight, jax.random.key(0))
    own = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((len(plan.id), *x.shape[1:]), x.dtype), state.clients
    )
    start = jax.eval_shape(method.broadcast, state.server, own.method, cohort)
    trained = ClientParams(spec.shapes(), head)
    with jax.numpy_dtype_promotion("standard"):  # as optax is written
        made = optimizers.optimizer(recipe.optimizer, clip=recipe.clip)
        moments = jax.eval_shape(made.init, trained)
    clients_per_step = execution.clients_per_step or 1
    devices = _devices(execution.mesh)
    memory = Memory(
        base=base_bytes(base, execution.mesh),
        server=trees.size_bytes(state),
        data=trees.size_bytes(tuple(assets.train)),
        client=trees.size_bytes(start) // len(plan.id)
        + trees.size_bytes(head)
        + trees.size_bytes(trained),
        working=3 * trees.size_bytes(trained) + trees.size_bytes(moments),
        activations=activations(recipe, base, trained, _abstract(assets.train)),
        layers=layers_taken_out(assets.model.config) * layer_bytes(base),
        cohort=federation.padded // devices.clients,
        clients_per_step=min(clients_per_step, federation.padded // devices.clients),
    )
    up, down = _traffic(config, federation, layout, trained.head, kernels)
    each = step_flops(recipe, base, trained, _abstract(assets.train))
    plans = (federation.plan(t, layout.allocated.ranks, 1.0) for t in range(FEW_ROUNDS))
    how = {
        "parts": devices.clients,
        "clients_per_step": 1 if execution.mode == "loop" else clients_per_step,
    }
    of_round = np.mean([cohort_flops(plan, each, **how) for plan in plans])
    trainings = 1 if method.select is None else 2  # clients train twice where they are probed
    return Needs(
        memory, up, down, fed.rounds, each[recipe.shapes[-1]], devices, recipe.shapes,
        trainings * float(of_round) / devices.model, config.model.dtype,
    )  # fmt: skip


def _devices(mesh: Mesh | None) -> Devices:
    clients, model = (1, 1) if mesh is None else (mesh.shape[AXIS], mesh.shape[MODEL])
    return Devices(jax.devices()[0].device_kind, clients, model, jax.process_count())


def _abstract(tree: Any) -> Any:
    """The tree with `jax.ShapeDtypeStruct` leaves."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _traffic(
    config: RunConfig,
    federation: Federation,
    layout: Layout,
    head: Params,
    kernels: Mapping[str, Any],
) -> tuple[float, float]:
    """Bytes up and down, means over the rounds, with the ranks that clients begin with."""
    spec, method = layout.spec, layout.method
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape), tree)  # noqa: E731
    full = {
        path: jax.ShapeDtypeStruct(kernel.shape, jnp.float32) for path, kernel in kernels.items()
    }
    # Compiled, so that the zeros, which the method's own state does not need, are never made.
    own = jax.jit(lambda: method.init(zeros(spec.shapes()), zeros(full)).state)()
    server = ServerState(spec.shapes(), {}, own)
    sent = head if config.federation.heads == "average" else {}
    up, down = [], []
    for t in range(config.federation.rounds):
        rank = layout.allocated.ranks[federation.sample(t)]
        traffic = method.traffic(server, rank, t)
        up.append(transforms.uplink_bytes(layout.updates, traffic, spec, sent).sum())
        down.append(traffic.down.sum() + len(rank) * trees.size_bytes(sent))
    return float(np.mean(up)), float(np.mean(down))
