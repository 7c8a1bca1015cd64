"""One federated round as one compiled function, built from a method and a local training."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_lora import lora
from fedjax_lora.core import layerwise, trees
from fedjax_lora.core.tree_structure import check_same_structure
from fedjax_lora.core.types import Array, ClientParams, Key, LoRA, Params
from fedjax_lora.federated import transforms
from fedjax_lora.federated.client_update import Local, all_finite, cohort_of, make_local
from fedjax_lora.federated.cohort import Mode
from fedjax_lora.federated.local_training import Train
from fedjax_lora.federated.shape_checks import check_outcome
from fedjax_lora.federated.sharding import everywhere
from fedjax_lora.federated.state import ClientStore, FederatedState, Head, Plan, RoundMetrics
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.base import Cohort, Method, ServerState

RoundFn = Callable[..., tuple[FederatedState, RoundMetrics]]


def make_round(
    method: Method,
    spec: LoraSpec,
    train: Train,
    *,
    heads: Head = "average",
    mode: Mode = "vmap",
    clients_per_step: int = 1,
    mesh: Mesh | None = None,
    updates: Sequence[transforms.UpdateTransform] = (),
    server_optimizer: transforms.ServerOptimizer | None = None,
    measure: Callable[..., dict[str, Any]] | None = None,
) -> RoundFn:
    """Compile a round.

    Args:
      method: the federated method.
      spec: where the adapters are.
      train: local training, see `fedjax_lora.federated.make_training`.
      heads: what happens to the task head, see `init_state`.
      mode: how the cohort is executed, see `fedjax_lora.federated.cohort`.
      clients_per_step: clients trained at once on one device.
      mesh: needed by mode ``sharded``.
      updates: what happens to what clients send, see `fedjax_lora.federated.transforms`; heads that
        are not averaged are not sent.
      server_optimizer: follows the change that the method makes.
      measure: ``(base, head, before, cohort, start, result, after)``, called on the host after
        every round (see `fedjax_lora.federated.diagnostics`). The round is then compiled in parts,
        so that what is between them can be seen and timed, and keeps its input.

    Returns:
      ``round_fn(base, data, state, plan, key) -> (state, RoundMetrics)``; ``state`` is donated
      unless the round is measured, ``key`` is the run's root key.

    Raises:
      InputError: on the first call, if the method, the training or an update returns shapes that
        the round cannot go on with.
    """
    locally = make_local(
        method, spec, train, heads=heads, mode=mode, clients_per_step=clients_per_step, mesh=mesh
    )

    def received(plan: Plan, key: Key, local: Local) -> tuple[ClientParams, Cohort]:
        """What arrives of what the clients have trained, and from whom."""
        trained = local.trained
        weight = jnp.where(all_finite(trained), plan.weight, 0.0)
        if updates:
            trained, weight = send(plan, key, local, weight)
        folded = lora.fold(trained.adapter, trained.coefficients)
        return ClientParams(folded, trained.head), cohort_of(spec, plan, weight, key)

    def send(plan: Plan, key: Key, local: Local, weight: Array) -> tuple[ClientParams, Array]:
        start, after, learns = local.clients.params, local.trained, local.clients.trainable
        a, b = method.sends
        sent = {path: LoRA(mask.a & a, mask.b & b) for path, mask in learns.adapter.items()}
        learns = learns._replace(adapter=sent)
        if heads != "average":  # then they are not sent
            start, after, learns = (x._replace(head={}) for x in (start, after, learns))
        own_key = jax.random.fold_in(jax.random.fold_in(key, plan.round), 2)
        got, weight = transforms.apply_transforms(
            updates, start, after, learns, weight, plan.id, own_key
        )
        check_same_structure("What the updates make of the clients' results", got, after)
        # Numbers too large to compute with may break on the way.
        weight = jnp.where(all_finite(got), weight, 0.0)
        return got if heads == "average" else got._replace(head=local.trained.head), weight

    def follow(
        state: FederatedState, server: ServerState, head: Params, somebody: Array
    ) -> tuple[ServerState, Params, Any]:
        if server_optimizer is None:
            return server, head, state.optimizer
        old, new = (
            ClientParams(state.server.adapter, state.head),
            ClientParams(server.adapter, head),
        )
        now, moments = transforms.server_step(server_optimizer, state.optimizer, old, new, somebody)
        return server._replace(adapter=now.adapter), now.head, moments

    def finish(
        state: FederatedState, plan: Plan, key: Key, local: Local
    ) -> tuple[FederatedState, RoundMetrics]:
        trained, cohort = received(plan, key, local)
        weight = cohort.weight
        with layerwise.spread_over(mesh):
            outcome = method.aggregate(
                state.server, local.mine.method, cohort, local.start, trained.adapter
            )
        check_outcome(outcome, state, local.mine.method, cohort)
        # Whatever the method makes of it, a round in which nobody is left changes nothing.
        somebody = jnp.any(weight > 0)
        server = jax.tree.map(
            lambda new, old: jnp.where(somebody, new, old), outcome.server, state.server
        )
        head = state.head
        if heads == "average":
            head = trees.weighted_mean(trained.head, weight, state.head)
        server, head, moments = follow(state, server, head, somebody)
        kept = ClientStore(outcome.clients, trained.head if heads == "local" else ())
        kept = trees.where(weight > 0, kept, local.mine)
        stored = jax.tree.map(
            lambda store, x: store.at[plan.id].set(x, mode="drop"), state.clients, kept
        )
        rejected = (weight == 0) & (plan.weight > 0)
        rank = jnp.where(weight > 0, outcome.rank, plan.rank)
        metrics = RoundMetrics(local.report.loss, local.report.examples, rejected, rank)
        return FederatedState(server, head, stored, moments), metrics

    def round_fn(base: Params, data: Any, state: FederatedState, plan: Plan, key: Key) -> tuple:
        return finish(state, plan, key, locally(base, data, state, plan, key))

    def measured_fn(base: Params, data: Any, state: FederatedState, plan: Plan, key: Key) -> tuple:
        local = jax.block_until_ready(locally(base, data, state, plan, key))
        times = [time.perf_counter()]
        after, metrics = jax.block_until_ready(finish(state, plan, key, local))
        times.append(time.perf_counter())
        trained, cohort = received(plan, key, local)
        assert measure is not None
        found = measure(
            base, state.head, state.server, cohort, local.start, trained.adapter, after.server
        )
        times.append(time.perf_counter())
        # The first round's are longer by the time it takes to compile.
        names = ("server_seconds", "measure_seconds")
        seconds = {name: times[n + 1] - times[n] for n, name in enumerate(names)}
        return after, metrics._replace(measured=found, seconds=seconds)

    placed = {"out_shardings": everywhere(mesh)} if mode == "sharded" else {}
    if mode != "loop" and measure is None:
        return jax.jit(round_fn, donate_argnums=2, **placed)
    finish = jax.jit(finish, **placed)
    if measure is None:
        return round_fn
    received = jax.jit(received)
    locally = locally if mode == "loop" else jax.jit(locally)
    return measured_fn
