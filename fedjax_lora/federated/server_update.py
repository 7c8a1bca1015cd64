"""The second half of a round: what the server makes of the clients' results."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_lora import lora
from fedjax_lora.core import layerwise, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.tree_structure import check_same_structure
from fedjax_lora.core.types import Adapter, Array, ClientParams, Key, LoRA, Params
from fedjax_lora.federated import central_noise, transforms
from fedjax_lora.federated.attacks import Attack, send_attacks
from fedjax_lora.federated.client_update import (
    CohortUpdate,
    all_finite,
    cohort_of,
)
from fedjax_lora.federated.round_keys import SERVER_NOISE, TRANSFORMS, round_key
from fedjax_lora.federated.shape_checks import check_outcome
from fedjax_lora.federated.staleness import (
    Arrivals,
    Past,
    Staleness,
    begun_in,
    caught_up,
    remember,
)
from fedjax_lora.federated.state import (
    ClientStore,
    FederatedState,
    Head,
    Plan,
    RoundMetrics,
)
from fedjax_lora.methods.base import (
    AggregateResult,
    Cohort,
    Method,
    ServerState,
    if_any_present,
)

ATTACKS = 2**31 - 1
"""Folded into a round's key of transforms to draw what attackers send; no transform has it."""


@dataclasses.dataclass(frozen=True, eq=False)
class ServerUpdate:
    """The second half of a round: transforms, aggregation and the server optimizer.

    Attributes:
      method: the federated method.
      heads: what happens to the task head.
      mesh: of the devices that share the work of the server, if there are several.
      updates: transforms of what clients send.
      optimizer: follows the change that the method makes, if there is one.
      attacks: what the plan's attackers do.
      staleness: how late clients are mixed, if any may be late.
    """

    method: Method
    heads: Head
    mesh: Mesh | None
    updates: tuple[transforms.UpdateTransform, ...]
    optimizer: transforms.ServerOptimizer | None
    attacks: tuple[Attack, ...]
    staleness: Staleness | None = None

    def finish(
        self, state: FederatedState, plan: Plan, key: Key, update: CohortUpdate
    ) -> tuple[FederatedState, RoundMetrics]:
        """The state after the round, and what the round reports."""
        trained, cohort = self.received(plan, key, update)
        arrivals = self._arrivals(state, plan, key, update, trained, cohort)
        result = self._aggregated(state, arrivals, len(plan.id))
        present = cohort.weight > 0
        # Whatever the method does then: a round without any client left changes nothing.
        server = if_any_present(cohort, result.server, state.server)
        head = state.head
        if self.heads == "average":
            weight = arrivals.cohort.weight
            head = trees.weighted_mean(arrivals.trained.head, weight, state.head)
        server, head = self._noised(state, plan, key, update, arrivals, (server, head))
        owned = self._owned(update, result, present)
        server, head, moments = self._followed(state, server, head, owned)
        clients = self._stored(state, plan, update, result, trained, present)
        rejected = (cohort.weight == 0) & (plan.weight > 0)
        rank = jnp.where(present, result.rank, plan.rank)
        few = self._few_owners(update, present)
        metrics = RoundMetrics(update.metrics.loss, update.metrics.examples, rejected, rank, few)
        if not isinstance(update.answered, tuple):
            silent = (plan.weight > 0) & ~update.answered
            none = jax.tree.map(jnp.zeros_like, result.added)
            metrics = metrics._replace(
                rejected=rejected & ~silent,
                silent=silent,
                added=if_any_present(cohort, result.added, none),
            )
        past = state.past
        if past:
            past = remember(past, jnp.asarray(plan.round) + 1, server, head)
        return FederatedState(server, head, clients, moments, past=past), metrics

    def _arrivals(
        self,
        state: FederatedState,
        plan: Plan,
        key: Key,
        update: CohortUpdate,
        trained: ClientParams,
        cohort: Cohort,
    ) -> Arrivals:
        """What the method aggregates: what has arrived, made up to date where it is late."""
        given = Arrivals(update.store.method, update.init, trained, cohort)
        if (self.staleness is None) != isinstance(plan.staleness, tuple) or (
            self.staleness is not None and not state.past
        ):
            raise InputError(
                "Late clients need staleness in make_round, init and every cohort alike; give it "
                "to all of them, or to none."
            )
        if self.staleness is None or isinstance(plan.staleness, tuple):
            return given
        late = jnp.asarray(plan.staleness)
        return caught_up(
            self.staleness,
            self.method,
            Past(state.server, state.head),
            given,
            begun_in(cohort, jnp.asarray(plan.round) - late, key),
            update.clients.params,
            update.clients.trainable,
            late,
        )

    def _noised(
        self,
        state: FederatedState,
        plan: Plan,
        key: Key,
        update: CohortUpdate,
        arrivals: Arrivals,
        mean: tuple[ServerState, Params],
    ) -> tuple[ServerState, Params]:
        """Server and head with the noise that the server adds, if there is any."""
        deviation, (server, head) = sum(one.central for one in self.updates), mean
        if not deviation:
            return mean

        def aggregate(adapter: Adapter) -> Adapter:
            given = arrivals._replace(trained=arrivals.trained._replace(adapter=adapter))
            return self._aggregated(state, given, len(plan.id)).server.adapter

        cohort, sends = arrivals.cohort, self._sends(update).adapter
        largest, touched = central_noise.shares(
            aggregate, arrivals.start.adapter, sends, cohort.weight
        )
        averaged = self.heads == "average"
        released = ClientParams(server.adapter, head if averaged else {})
        own_key = round_key(key, plan.round, SERVER_NOISE)
        new = central_noise.noised(released, deviation, largest, touched, cohort, own_key)
        return server._replace(adapter=new.adapter), new.head if averaged else head

    def received(self, plan: Plan, key: Key, update: CohortUpdate) -> tuple[ClientParams, Cohort]:
        """What arrives of what the clients have trained, and from whom."""
        trained = update.trained
        weight = jnp.where(all_finite(trained), plan.weight, 0.0)
        if not isinstance(update.answered, tuple):
            weight = jnp.where(update.answered, weight, 0.0)
        if self.updates or self.attacks or plan.attackers:
            trained, weight = self._sent(plan, key, update, weight)
        folded = lora.fold(trained.adapter, trained.coefficients)
        cohort = cohort_of(self.method.spec, plan, weight, key)
        return ClientParams(folded, trained.head), cohort

    def _sent(
        self, plan: Plan, key: Key, update: CohortUpdate, weight: Array
    ) -> tuple[ClientParams, Array]:
        """What the transforms make of the clients' messages, and the weights after them."""
        start, after, learns = update.clients.params, update.trained, self._sends(update)
        if self.heads != "average":  # then they are not sent
            start, after, learns = (x._replace(head={}) for x in (start, after, learns))
        own_key = round_key(key, plan.round, TRANSFORMS)
        got, weight = transforms.apply_transforms(
            self.updates,
            start,
            after,
            learns,
            weight,
            jnp.asarray(plan.id),
            own_key,
            gain=update.clients.gain,
            attacked=self._attacked(start, learns, plan, own_key),
        )
        check_same_structure("What the updates make of the clients' results", got, after)
        # Numbers too large to compute with may break on the way.
        weight = jnp.where(all_finite(got), weight, 0.0)
        head = got.head if self.heads == "average" else update.trained.head
        return got._replace(head=head), weight

    def _attacked(
        self, start: ClientParams, learns: ClientParams, plan: Plan, key: Key
    ) -> transforms.Attacked | None:
        """What replaces the messages of attackers, if there are attacks."""
        if len(plan.attackers) != len(self.attacks):
            raise InputError(
                f"The round has {len(self.attacks)} attacks and the cohort attackers for "
                f"{len(plan.attackers)}; give federated.cohort as many rows of attackers."
            )
        if not self.attacks:
            return None
        own_key = jax.random.fold_in(key, ATTACKS)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(own_key, jnp.asarray(plan.id))

        def attacked(trained: ClientParams, weight: Array) -> ClientParams:
            attackers = [jnp.asarray(x) for x in plan.attackers]
            return send_attacks(self.attacks, start, trained, learns, weight, attackers, keys)

        return attacked

    def _few_owners(self, update: CohortUpdate, present: Array) -> Array | tuple[()]:
        """How many components have owners, but too few for a robust statistic."""
        needed = max((one.needs_owners for one in self.updates), default=0)
        if not needed:
            return ()
        masks = lora.masked_components(self._sends(update).adapter)
        counts = [jnp.sum(x & trees.expand(present, x), axis=0) for x in masks.values()]
        few = [jnp.sum((n > 0) & (n < needed)) for n in counts]
        return jnp.sum(jnp.stack(few)).astype(jnp.int32)

    def _sends(self, update: CohortUpdate) -> ClientParams:
        """What of its parameters each client has trained and sends, but for heads."""
        learns, (a, b) = update.clients.trainable, self.method.sends
        sent = {path: LoRA(mask.a & a, mask.b & b) for path, mask in learns.adapter.items()}
        return learns._replace(adapter=sent)

    def _owned(self, update: CohortUpdate, result: AggregateResult, present: Array) -> ClientParams:
        """What the present clients own of the global adapter and head, see `server_step`."""
        sends = self._sends(update)

        def anybody(mask: Array) -> Array:
            return jnp.any(mask & trees.expand(present, mask), axis=0)

        adapter = result.owned or jax.tree.map(anybody, sends.adapter)
        averaged = self.heads == "average"
        return ClientParams(adapter, jax.tree.map(lambda x: anybody(x & averaged), sends.head))

    def _aggregated(self, state: FederatedState, arrivals: Arrivals, count: int) -> AggregateResult:
        """The aggregate, with ranks and state of so many clients."""
        own, start, trained, cohort = arrivals
        with layerwise.spread_over(self.mesh):
            result = self.method.aggregate(state.server, own, cohort, start, trained.adapter)
        check_outcome(result, state, own, cohort)
        clients = jax.tree.map(lambda x: x[:count], result.clients)
        return result._replace(clients=clients, rank=result.rank[:count])

    def _followed(
        self, state: FederatedState, server: ServerState, head: Params, owned: ClientParams
    ) -> tuple[ServerState, Params, Any]:
        """Server, head and moments after a step of the server optimizer, if there is one."""
        if self.optimizer is None:
            return server, head, state.optimizer
        old = ClientParams(state.server.adapter, state.head)
        new = ClientParams(server.adapter, head)
        now, moments = transforms.server_step(self.optimizer, state.optimizer, old, new, owned)
        return server._replace(adapter=now.adapter), now.head, moments

    def _stored(
        self,
        state: FederatedState,
        plan: Plan,
        update: CohortUpdate,
        result: AggregateResult,
        trained: ClientParams,
        present: Array,
    ) -> ClientStore:
        """The store of all clients with the entries of those present replaced."""
        kept = ClientStore(result.clients, trained.head if self.heads == "local" else ())
        kept = trees.where(present, kept, update.store)
        return jax.tree.map(
            lambda store, x: store.at[plan.id].set(x, mode="drop"), state.clients, kept
        )
