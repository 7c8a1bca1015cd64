"""The round of a run in outline: its spec and plans, and the shapes of its arrays."""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_lora import federated, lora
from fedjax_lora.core.target import current_target
from fedjax_lora.core.trees import Tree
from fedjax_lora.core.types import Adapter, ClientParams, Kernels, Params
from fedjax_lora.data import Tokens
from fedjax_lora.federated import AXIS, MODEL, FederatedState, Plan
from fedjax_lora.federated.planning import Federation
from fedjax_lora.runs.compilation import RoundSpec
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.plans import make_federation, make_round_spec
from fedjax_lora.runs.setup import Setup


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


class Shapes(NamedTuple):
    """Shapes of the arrays of a run, as `jax.ShapeDtypeStruct`."""

    base: Params
    head: Params
    trained: ClientParams  # adapter and head of a client
    kernels: Kernels  # of the adapted layers, by path
    state: FederatedState
    data: Tokens  # for training


class Outline(NamedTuple):
    """All that is known of the rounds of a run before arrays are made.

    Attributes:
      config: the run.
      assets: its data and model, whose parameters may be shapes.
      setup: what is decided before anything is compiled.
      federation: plans the rounds.
      round_spec: everything that the compiled round depends on.
      shapes: of the arrays of the run.
    """

    config: RunConfig
    assets: Assets
    setup: Setup
    federation: Federation
    round_spec: RoundSpec
    shapes: Shapes

    def plan(self, round: int) -> Plan:
        """Plan a round with the clients' initial ranks."""
        rank = self.setup.allocation.ranks
        if self.setup.server is None:
            return self.federation.plan(round, rank, 1.0)
        ids = self.federation.sample(round)  # about as much work as those who answer
        return self.federation.plan(round, rank, 1.0, ids=ids, begun=np.full(len(ids), round))

    @property
    def trainings(self) -> int:
        """Local trainings in a round: a probe is a training of its own."""
        return 1 if self.setup.method.select is None else 2


def make_outline(config: RunConfig, assets: Assets, setup: Setup) -> Outline:
    """Outline the rounds of a run.

    Args:
      config: the run.
      assets: its data and model; the model's parameters may be shapes alone.
      setup: what is decided before anything is compiled.
    """
    return Outline(
        config=config,
        assets=assets,
        setup=setup,
        federation=make_federation(config, assets, setup),
        round_spec=make_round_spec(config, assets, setup),
        shapes=_shapes(config, assets, setup),
    )


def _shapes(config: RunConfig, assets: Assets, setup: Setup) -> Shapes:
    method, fed = setup.method, config.federation
    params, spec = abstract(assets.model.params), method.spec
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
            staleness=setup.server and setup.server.staleness,
        )

    state = jax.eval_shape(init, spec.shapes(), kernels, head)
    trained = ClientParams(spec.shapes(), head)
    return Shapes(base, head, trained, kernels, state, abstract(assets.train))


def abstract(tree: Tree) -> Tree:
    """Return a tree with `jax.ShapeDtypeStruct` leaves."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def devices_of(mesh: Mesh | None) -> Devices:
    """Describe the devices of a run with this mesh, or with one device."""
    clients, model = (1, 1) if mesh is None else (mesh.shape[AXIS], mesh.shape[MODEL])
    target = current_target()
    return Devices(target.kind, clients, model, target.processes)
