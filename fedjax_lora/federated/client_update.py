"""The first half of a round: broadcast and local training of a cohort."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_lora import lora
from fedjax_lora.core.tree_structure import check_same_structure
from fedjax_lora.core.types import Array, ClientParams, Key, Params
from fedjax_lora.federated.cohort import Mode, execute
from fedjax_lora.federated.local_training import Clients, Report, Train
from fedjax_lora.federated.shape_checks import check_start
from fedjax_lora.federated.state import ClientStore, FederatedState, Head, Plan, with_kernels
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.base import ClientInit, Cohort, Method


class Local(NamedTuple):
    """A cohort after its local training."""

    start: ClientInit
    clients: Clients  # what they trained from
    mine: ClientStore  # the clients' part of the store, before the round
    trained: ClientParams  # [c, ...]
    report: Report


LocalFn = Callable[..., Local]


def cohort_of(spec: LoraSpec, plan: Plan, weight: Array, key: Key) -> Cohort:
    """The cohort of a plan as methods see it, with these weights."""
    scale = jnp.broadcast_to(jnp.asarray(spec.scale(plan.rank), jnp.float32), plan.rank.shape)
    method_key = jax.random.fold_in(jax.random.fold_in(key, plan.round), 0)
    return Cohort(plan.id, plan.rank, weight, scale, plan.round, method_key)


def make_local(
    method: Method,
    spec: LoraSpec,
    train: Train,
    *,
    heads: Head = "average",
    mode: Mode = "vmap",
    clients_per_step: int = 1,
    mesh: Mesh | None = None,
) -> LocalFn:
    """The first half of a round, for the arguments of `make_round`: broadcast, local training.

    Returns:
      ``locally(base, data, state, plan, key) -> Local``, to be compiled as part of something; in
      mode ``loop`` its parts are compiled.
    """
    run_cohort = execute(train, mode=mode, clients_per_step=clients_per_step, mesh=mesh)

    def begin(
        state: FederatedState, plan: Plan, key: Key
    ) -> tuple[ClientInit, Clients, ClientStore]:
        mine = jax.tree.map(lambda x: x.at[plan.id].get(mode="clip"), state.clients)
        start = method.broadcast(state.server, mine.method, cohort_of(spec, plan, plan.weight, key))
        count = plan.id.shape[0]
        check_start(start, spec, count)
        head = mine.head
        if heads != "local":
            head = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (count, *x.shape)), state.head)
        learns = jax.tree.map(
            lambda x: jnp.full((count,) + (1,) * (x.ndim - 1), heads != "frozen"), head
        )
        training_key = jax.random.fold_in(jax.random.fold_in(key, plan.round), 1)
        keys = jax.vmap(lambda i: jax.random.fold_in(training_key, i))(plan.id)
        params, trainable = trained_from(start, head, learns)
        clients = Clients(params, start.gain, trainable, plan.rank, plan.batches, keys)
        return start, clients, mine

    def choose(
        state: FederatedState,
        plan: Plan,
        key: Key,
        start: ClientInit,
        clients: Clients,
        mine: ClientStore,
        probed: ClientParams,
    ) -> tuple[ClientInit, Clients]:
        weight = jnp.where(all_finite(probed), plan.weight, 0.0)
        assert method.select is not None
        start = method.select(
            state.server, mine.method, cohort_of(spec, plan, weight, key), start, probed.adapter
        )
        params, trainable = trained_from(start, clients.params.head, clients.trainable.head)
        return start, clients._replace(params=params, gain=start.gain, trainable=trainable)

    def locally(base: Params, data: Any, state: FederatedState, plan: Plan, key: Key) -> Local:
        start, clients, mine = begin(state, plan, key)
        full = with_kernels(base, state.server.kernels)
        if method.select is not None:
            probed, _ = run_cohort(full, data, clients, plan.rate)
            start, clients = choose(state, plan, key, start, clients, mine, probed)
        trained, report = run_cohort(full, data, clients, plan.rate)
        check_same_structure("What local training returns", trained, clients.params)
        return Local(start, clients, mine, trained, report)

    if mode == "loop":
        begin, choose = jax.jit(begin), jax.jit(choose)
    return locally


def trained_from(
    start: ClientInit, head: Params, learns: Params
) -> tuple[ClientParams, ClientParams]:
    """What clients begin with, and what of it they train; coefficients where either factor is."""
    trains = lora.masked_components(start.trainable) if start.coefficients else ()
    return (
        ClientParams(start.adapter, head, start.coefficients),
        ClientParams(start.trainable, learns, trains),
    )


def all_finite(tree: Any) -> Array:
    """Which clients have only finite values, over leaves ``[c, ...]``: ``bool[c]``."""
    each = [jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(each), axis=0)
