"""One federated round as one compiled function, built from a method and a local training.

``state, metrics = round_fn(base, data, state, plan, key)``: broadcast, local training of the whole
cohort, rejection of broken updates, what else is put around the method (`fedjax_lora.around`), and
aggregation. Ranks, members, weights, batches, learning rate and random choices are data: the
function compiles once.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_lora import around, trees
from fedjax_lora.adapters import Template
from fedjax_lora.clients.cohort import Mode, everywhere, execute
from fedjax_lora.clients.local import Clients, Report, Train
from fedjax_lora.methods.base import Cohort, Method, Server, Start
from fedjax_lora.types import Adapter, Array, Batches, Kernels, Key, Params, Trained

Head = Literal["average", "frozen", "local"]


class ClientStore(NamedTuple):
    """What belongs to single clients and outlives a round; leaves ``[N, ...]``."""

    method: Any  # the method's own
    head: Any  # each client's head if heads are local, else ()


class FederatedState(NamedTuple):
    """Everything that changes from round to round on the device."""

    server: Server
    head: Params  # the global head; with local heads the one they began with
    clients: ClientStore
    optimizer: Any = ()  # state of the server optimizer


class Plan(NamedTuple):
    """What the host decides about a round; an id of `N` (beyond the last) is an absent client."""

    id: Any  # int32[c]
    rank: Any  # int32[c]
    weight: Any  # float32[c], training examples of the client; 0 if absent
    batches: Batches
    rate: Any  # float32[], learning rate
    round: Any  # int32[], from 0


class RoundMetrics(NamedTuple):
    """What a round reports, per client of the cohort."""

    loss: Array  # float32[c], mean training loss
    examples: Array  # float32[c], examples processed
    rejected: Array  # bool[c], updates left out: not finite, or outliers
    rank: Array  # int32[c], ranks after the round


RoundFn = Callable[..., tuple[FederatedState, RoundMetrics]]


def init_state(
    method: Method,
    adapter: Adapter,
    kernels: Kernels,
    head: Params,
    *,
    clients: int,
    heads: Head,
    server_optimizer: around.ServerOptimizer | None = None,
) -> FederatedState:
    """The state before the first round.

    Args:
      method: the federated method.
      adapter: the global adapter to begin with.
      kernels: base kernels at the adapted sites.
      head: the initial task head.
      clients: `N`.
      heads: ``average`` (global, trained), ``frozen``, or ``local`` (each client keeps its own).
      server_optimizer: that of the rounds.
    """
    own = ()
    if heads == "local":
        own = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (clients, *x.shape)), head)
    store = ClientStore(method.init_clients(clients), own)
    server = method.init(adapter, kernels)
    moments = ()
    if server_optimizer is not None:
        moments = server_optimizer.init(Trained(server.adapter, head))
    return FederatedState(server, head, store, moments)


def with_kernels(base: Params, kernels: Kernels) -> Params:
    """The base with the kernels a method has changed; arrays are shared, not copied."""
    if not kernels:
        return base
    return trees.replace(base, {f"{path}/kernel": kernel for path, kernel in kernels.items()})


def make_round(
    method: Method,
    template: Template,
    train: Train,
    *,
    heads: Head = "average",
    mode: Mode = "vmap",
    wave: int = 1,
    mesh: Mesh | None = None,
    updates: Sequence[around.Update] = (),
    server_optimizer: around.ServerOptimizer | None = None,
) -> RoundFn:
    """Compile a round.

    Args:
      method: the federated method.
      template: where the adapters are.
      train: local training, see `fedjax_lora.clients.make_training`.
      heads: what happens to the task head, see `init_state`.
      mode: how the cohort is executed, see `fedjax_lora.clients.cohort`.
      wave: clients trained at once on one device.
      mesh: needed by mode ``sharded``.
      updates: what happens to what clients send, see `fedjax_lora.around`; heads that are not
        averaged are not sent.
      server_optimizer: follows the change that the method makes.

    Returns:
      ``round_fn(base, data, state, plan, key) -> (state, RoundMetrics)``; ``state`` is donated,
      ``key`` is the run's root key.
    """
    run_cohort = execute(train, mode=mode, wave=wave, mesh=mesh)

    def cohort_of(plan: Plan, weight: Array, key: Key) -> Cohort:
        scale = jnp.broadcast_to(
            jnp.asarray(template.scale(plan.rank), jnp.float32), plan.rank.shape
        )
        method_key = jax.random.fold_in(jax.random.fold_in(key, plan.round), 0)
        return Cohort(plan.id, plan.rank, weight, scale, plan.round, method_key)

    def begin(state: FederatedState, plan: Plan, key: Key) -> tuple[Start, Clients, ClientStore]:
        mine = jax.tree.map(lambda x: x.at[plan.id].get(mode="clip"), state.clients)
        start = method.broadcast(state.server, mine.method, cohort_of(plan, plan.weight, key))
        count = plan.id.shape[0]
        head = mine.head
        if heads != "local":
            head = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (count, *x.shape)), state.head)
        learns = jax.tree.map(
            lambda x: jnp.full((count,) + (1,) * (x.ndim - 1), heads != "frozen"), head
        )
        training_key = jax.random.fold_in(jax.random.fold_in(key, plan.round), 1)
        keys = jax.vmap(lambda i: jax.random.fold_in(training_key, i))(plan.id)
        clients = Clients(
            Trained(start.adapter, head),
            start.gain,
            Trained(start.trainable, learns),
            plan.rank,
            plan.batches,
            keys,
        )
        return start, clients, mine

    def choose(
        state: FederatedState,
        plan: Plan,
        key: Key,
        start: Start,
        clients: Clients,
        mine: ClientStore,
        probed: Trained,
    ) -> tuple[Start, Clients]:
        weight = jnp.where(all_finite(probed), plan.weight, 0.0)
        assert method.select is not None
        start = method.select(
            state.server, mine.method, cohort_of(plan, weight, key), start, probed.adapter
        )
        params = clients.params._replace(adapter=start.adapter)
        trainable = clients.trainable._replace(adapter=start.trainable)
        return start, clients._replace(params=params, gain=start.gain, trainable=trainable)

    def send(
        plan: Plan, key: Key, clients: Clients, trained: Trained, weight: Array
    ) -> tuple[Trained, Array]:
        start, after, learns = clients.params, trained, clients.trainable
        if heads != "average":  # then they are not sent
            start, after, learns = (x._replace(head={}) for x in (start, after, learns))
        own_key = jax.random.fold_in(jax.random.fold_in(key, plan.round), 2)
        got, weight = around.apply(updates, start, after, learns, weight, plan.id, own_key)
        # Numbers too large to compute with may break on the way.
        weight = jnp.where(all_finite(got), weight, 0.0)
        return got if heads == "average" else got._replace(head=trained.head), weight

    def finish(
        state: FederatedState,
        plan: Plan,
        key: Key,
        start: Start,
        clients: Clients,
        mine: ClientStore,
        trained: Trained,
        report: Report,
    ) -> tuple[FederatedState, RoundMetrics]:
        sound = all_finite(trained)
        weight = jnp.where(sound, plan.weight, 0.0)
        if updates:
            trained, weight = send(plan, key, clients, trained, weight)
            sound = weight > 0
        cohort = cohort_of(plan, weight, key)
        server, own, rank = method.aggregate(
            state.server, mine.method, cohort, start, trained.adapter
        )
        head = state.head
        if heads == "average":
            head = trees.weighted_mean(trained.head, weight, state.head)
        moments = state.optimizer
        if server_optimizer is not None:
            old, new = Trained(state.server.adapter, state.head), Trained(server.adapter, head)
            somebody = jnp.any(weight > 0)
            (adapter, head), moments = around.follow(server_optimizer, moments, old, new, somebody)
            server = server._replace(adapter=adapter)
        kept = ClientStore(own, trained.head if heads == "local" else ())
        kept = trees.where(sound, kept, mine)
        stored = jax.tree.map(
            lambda store, x: store.at[plan.id].set(x, mode="drop"), state.clients, kept
        )
        rejected = ~sound & (plan.weight > 0)
        metrics = RoundMetrics(report.loss, report.examples, rejected, rank)
        return FederatedState(server, head, stored, moments), metrics

    def round_fn(base: Params, data: Any, state: FederatedState, plan: Plan, key: Key) -> tuple:
        start, clients, mine = begin(state, plan, key)
        full = with_kernels(base, state.server.kernels)
        if method.select is not None:
            probed, _ = run_cohort(full, data, clients, plan.rate)
            start, clients = choose(state, plan, key, start, clients, mine, probed)
        trained, report = run_cohort(full, data, clients, plan.rate)
        return finish(state, plan, key, start, clients, mine, trained, report)

    if mode == "loop":
        begin, choose, finish = jax.jit(begin), jax.jit(choose), jax.jit(finish)
        return round_fn
    if mode == "sharded":
        return jax.jit(round_fn, donate_argnums=2, out_shardings=everywhere(mesh))
    return jax.jit(round_fn, donate_argnums=2)


def all_finite(tree: Any) -> Array:
    """Which clients have only finite values, over leaves ``[c, ...]``: ``bool[c]``."""
    each = [jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(each), axis=0)
