"""The first half of a round: broadcast, selection and local training of a cohort."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.tree_structure import check_same_structure
from fedjax_lora.core.types import AnyArray, Array, ClientParams, Key, Params, PyTree
from fedjax_lora.federated.execution import DEFAULT_EXECUTION, Exchange, Execution, execute
from fedjax_lora.federated.remote import Assignment, trained_from
from fedjax_lora.federated.round_keys import METHOD, TRAINING, round_key
from fedjax_lora.federated.shape_checks import check_start
from fedjax_lora.federated.staleness import begun_in, broadcast_each, recall
from fedjax_lora.federated.state import ClientStore, FederatedState, Head, Plan
from fedjax_lora.federated.training import ClientMetrics, Clients, Training
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.base import ClientInit, Cohort, Method, client_kernels


class CohortUpdate(NamedTuple):
    """A cohort after its local training."""

    init: ClientInit
    clients: Clients  # the inputs of the training
    store: ClientStore  # the clients' part of the store, before the round
    trained: ClientParams  # [c, ...]
    metrics: ClientMetrics
    # bool[c], who has answered, in mode ``remote``; (): everybody
    answered: Array | tuple[()] = ()


ClientUpdateFn = Callable[[Params, PyTree, FederatedState, Plan, Key], CohortUpdate]
"""``(base, data, state, plan, key) -> CohortUpdate``, where ``key`` is the run's root key."""


def cohort_of(spec: LoraSpec, plan: Plan, weight: AnyArray, key: Key) -> Cohort:
    """The cohort of a plan as methods see it, with these weights."""
    id, rank, amount, round = map(jnp.asarray, (plan.id, plan.rank, weight, plan.round))
    scale = jnp.broadcast_to(jnp.asarray(spec.scale(rank), jnp.float32), rank.shape)
    return Cohort(id, rank, amount, scale, round, round_key(key, round, METHOD))


@checked_options
def make_client_update(
    method: Method,
    train: Training,
    *,
    heads: Head = "average",
    execution: Execution = DEFAULT_EXECUTION,
) -> ClientUpdateFn:
    """The first half of a round, for the arguments of `fedjax_lora.federated.make_round`.

    Returns:
      A `ClientUpdateFn`, to be compiled as part of something; in mode ``loop`` its parts are
      compiled.
    """
    parts = ClientParts(method, heads)
    broadcast, select = parts.broadcast, parts.select
    if execution.mode == "remote":
        assert execution.exchange is not None  # checked by `Execution`
        return _remote(method, jax.jit(broadcast), execution.exchange)
    if execution.mode == "loop":
        broadcast, select = jax.jit(broadcast), jax.jit(select)
    train_cohort = execute(train.bind(method), execution)

    def client_update(
        base: Params, data: Any, state: FederatedState, plan: Plan, key: Key
    ) -> CohortUpdate:
        init, clients, store = broadcast(state, plan, key)
        full = lora.with_kernels(base, client_kernels(method, state.server))
        rate = jnp.asarray(plan.rate)
        if method.select is not None:
            probed, _ = train_cohort(full, data, clients, rate)
            init, clients = select(plan, init, clients, probed)
        trained, metrics = train_cohort(full, data, clients, rate)
        check_same_structure("What local training returns", trained, clients.params)
        return CohortUpdate(init, clients, store, trained, metrics)

    return client_update


def _remote(method: Method, broadcast: Callable[..., Any], exchange: Exchange) -> ClientUpdateFn:
    """The first half of a round whose clients are trained elsewhere, probes and selection too."""

    def client_update(
        base: Params, data: Any, state: FederatedState, plan: Plan, key: Key
    ) -> CohortUpdate:
        init, clients, store = broadcast(state, plan, key)
        full = lora.with_kernels(base, client_kernels(method, state.server))
        answers = exchange(Assignment(full, data, clients, plan))
        check_same_structure("What the exchange returns", answers.params, clients.params)
        answered = jnp.asarray(answers.answered)
        trained = trees.where(answered, answers.params, clients.params)
        chosen = trees.where(answered, answers.trainable.adapter, clients.trainable.adapter)
        init = init._replace(trainable=chosen)
        params, trainable = trained_from(init, clients.params.head, clients.trainable.head)
        clients = clients._replace(params=params, trainable=trainable)
        metrics = trees.where(answered, answers.metrics, _nothing(answered))
        return CohortUpdate(init, clients, store, trained, metrics, answered)

    return client_update


def _nothing(answered: Array) -> ClientMetrics:
    """The metrics of clients that have not answered."""
    return ClientMetrics(*(jnp.zeros(answered.shape),) * 2)


@dataclasses.dataclass(frozen=True, eq=False)
class ClientParts:
    """What happens before local training, as functions to be traced."""

    method: Method
    heads: Head

    def broadcast(
        self, state: FederatedState, plan: Plan, key: Key
    ) -> tuple[ClientInit, Clients, ClientStore]:
        """What the clients receive, and all that their training needs."""
        store = jax.tree.map(lambda x: x.at[plan.id].get(mode="clip"), state.clients)
        cohort = cohort_of(self.method.spec, plan, plan.weight, key)
        begun, head = jnp.broadcast_to(jnp.asarray(plan.round), plan.id.shape), None
        if state.past and not isinstance(plan.staleness, tuple):
            begun = begun - jnp.asarray(plan.staleness)
            past = recall(state.past, begun)
            head = past.head
            own = begun_in(cohort, begun, key)
            init = broadcast_each(self.method, past.server, store.method, own)
        else:
            init = self.method.broadcast(state.server, store.method, cohort)
        check_start(init, self.method.spec, plan.id.shape[0])
        head, learns = self._heads(state, store, plan.id.shape[0], head)
        keys = jax.vmap(_training_key, in_axes=(None, 0, 0))(key, begun, jnp.asarray(plan.id))
        params, trainable = trained_from(init, head, learns)
        rank = jnp.asarray(plan.rank)
        return init, Clients(params, init.gain, trainable, rank, plan.batches, keys), store

    def _heads(
        self, state: FederatedState, store: ClientStore, count: int, past: Any = None
    ) -> tuple[Any, Any]:
        """The clients' heads ``[c, ...]``, those of ``past`` if given, and which are trained."""
        head = store.head if self.heads == "local" else past
        if head is None:
            head = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (count, *x.shape)), state.head)
        learns = jax.tree.map(
            lambda x: jnp.full((count,) + (1,) * (x.ndim - 1), self.heads != "frozen"), head
        )
        return head, learns

    def select(
        self, plan: Plan, init: ClientInit, clients: Clients, probed: ClientParams
    ) -> tuple[ClientInit, Clients]:
        """What clients train after a probe; see ``Method.select``."""
        assert self.method.select is not None
        round = jnp.asarray(plan.round)
        init = self.method.select(round, clients.rank, init, probed.adapter)
        params, trainable = trained_from(init, clients.params.head, clients.trainable.head)
        return init, clients._replace(params=params, gain=init.gain, trainable=trainable)


def _training_key(key: Key, round: Array, id: Array) -> Key:
    """The key of a client's training in the round in which it begins."""
    return jax.random.fold_in(round_key(key, round, TRAINING), id)


def all_finite(tree: PyTree) -> Array:
    """Which clients have only finite values, over leaves ``[c, ...]``: ``bool[c]``."""
    each = [jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(each), axis=0)
