"""The state of a federation, a round's plan and its metrics."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from fedjax_lora import lora
from fedjax_lora.core import quantization, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import (
    Adapter,
    AnyArray,
    Array,
    Batches,
    ClientParams,
    Kernels,
    Key,
    Params,
    PyTree,
)
from fedjax_lora.federated import transforms
from fedjax_lora.federated.objectives import with_head
from fedjax_lora.federated.staleness import Past, Staleness, begin, check_method
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.base import Method, ServerState

Head = Literal["average", "frozen", "local"]
"""What happens to fully trained parameters: averaged by the server, not trained, or kept by each
client as its own."""


class ClientStore(NamedTuple):
    """The state of all clients between rounds; leaves ``[N, ...]``."""

    method: PyTree  # the method's state of each client
    head: PyTree  # each client's head if heads are local, else ()


class LoopState(NamedTuple):
    """Values that a loop of your own carries besides the federation."""

    key: Key  # the root key
    most: Array  # int32[N], the highest rank that the method has left each client


class FederatedState(NamedTuple):
    """Everything that changes from round to round on the device."""

    server: ServerState
    head: Params  # the global head; with local heads the one they began with
    clients: ClientStore
    optimizer: optax.OptState = ()  # state of the server optimizer
    loop: (
        LoopState | tuple[()]
    ) = ()  # `LoopState` in a loop of your own; a run keeps these values itself
    past: Past | tuple[()] = ()  # models of the last rounds, where clients may be late


class Plan(NamedTuple):
    """The host's decisions about a round.

    An id of `N` (beyond the last) is an absent client, which only fills up the cohort; a client of
    weight 0 was drawn but does not answer.
    """

    id: AnyArray  # int32[c]
    rank: AnyArray  # int32[c]
    weight: AnyArray  # float32[c], training examples of the client; 0 if nothing comes from it
    batches: Batches
    rate: ArrayLike  # float32[], learning rate
    round: ArrayLike  # int32[], from 0
    attackers: tuple[AnyArray, ...] = ()  # bool[c] per attack, who commits it
    # int32[c], rounds since each client began; (): all begin in this round
    staleness: AnyArray | tuple[()] = ()


class RoundInput(NamedTuple):
    """A round's clients and the examples they train on, see `fedjax_lora.federated.cohort`."""

    plan: Plan
    data: PyTree  # a pytree, leaves [E, ...], whose rows the plan's batches name


class RoundMetrics(NamedTuple):
    """What a round reports, per client of the cohort."""

    loss: Array  # float32[c], mean training loss
    examples: Array  # float32[c], examples processed
    rejected: Array  # bool[c], updates left out: not finite, or outliers
    rank: Array  # int32[c], ranks after the round
    # int32[], components with too few owners for a robust statistic, in all layers
    few_owners: Array | tuple[()] = ()
    measured: (
        Mapping[str, object] | tuple[()]
    ) = ()  # what was measured besides, a dictionary of JSON values
    # bool[c], in mode ``remote``: who should have answered and has not
    silent: Array | tuple[()] = ()
    # in mode ``remote``: what the method has added to the base, as factors, see `AggregateResult`
    added: Adapter | tuple[()] = ()
    seconds: (
        Mapping[str, float] | tuple[()]
    ) = ()  # how long the parts of a measured round took, by name


@checked_options
def init(
    method: Method,
    params: Params,
    key: Key,
    *,
    num_clients: int,
    adapter: Adapter | None = None,
    fully_trained: str | Sequence[str] = (),
    heads: Head = "average",
    server_optimizer: transforms.ServerOptimizer | None = None,
    staleness: Staleness | None = None,
) -> FederatedState:
    """The state before the first round of a loop of your own.

    Args:
      method: the federated method.
      params: the base parameters that the method's spec was made from.
      key: the root key: of a fresh adapter, and of everything that is random in the rounds.
      num_clients: `N`, clients in the federation.
      adapter: the global adapter to begin with; by default a fresh one.
      fully_trained: regular expressions, searched in the ``/``-joined paths of ``params``:
        parameters that are trained in full besides the adapters, a task head for example.
      heads: what happens to them; give `fedjax_lora.federated.make_round` the same.
      server_optimizer: that of the rounds.
      staleness: that of the rounds, if clients may be late.

    Raises:
      InputError: an expression that matches no parameter, or one that is adapted.
    """
    if adapter is None:
        adapter = lora.init(method.spec, jax.random.fold_in(key, 1))
    head = _fully_trained(method.spec, params, fully_trained)
    state = init_state(
        method,
        adapter,
        lora.kernels_of(params, method.spec),
        head,
        clients=num_clients,
        heads=heads,
        server_optimizer=server_optimizer,
        staleness=staleness,
    )
    # A copy: a round donates its input, and the parameters belong to the caller.
    return jax.tree.map(jnp.array, state)._replace(
        loop=LoopState(key, jnp.full(num_clients, method.spec.rank, jnp.int32))
    )


def _fully_trained(spec: LoraSpec, params: Params, patterns: str | Sequence[str]) -> Params:
    """The parameters that match, at their paths."""
    leaves, chosen = trees.flat(params), {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = {path: x for path, x in leaves.items() if re.search(pattern, path)}
        if not matched:
            raise InputError(
                f"fully_trained={pattern!r} matches no parameter; those of this model are "
                f"{', '.join(leaves)}."
            )
        chosen |= matched
    if both := [t.path for t in spec.targets if f"{t.path}/kernel" in chosen]:
        raise InputError(
            f"Parameters of {', '.join(both)} are both adapted and fully trained; leave them out "
            "of the spec's targets or of fully_trained."
        )
    return trees.nested(chosen)


@checked_options
def init_state(
    method: Method,
    adapter: Adapter,
    kernels: Kernels,
    head: Params,
    *,
    clients: int,
    heads: Head,
    server_optimizer: transforms.ServerOptimizer | None = None,
    staleness: Staleness | None = None,
) -> FederatedState:
    """The state before the first round, from its parts.

    Args:
      method: the federated method.
      adapter: the global adapter to begin with.
      kernels: base kernels of the adapted layers, however they are stored; a method that changes
        them keeps them in float32.
      head: the initial task head.
      clients: `N`.
      heads: ``average`` (global, trained), ``frozen``, or ``local`` (each client keeps its own).
      server_optimizer: that of the rounds.
      staleness: that of the rounds, if clients may be late.
    """
    own = ()
    if heads == "local":
        own = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (clients, *x.shape)), head)
    store = ClientStore(method.init_clients(clients), own)
    server = jax.jit(lambda *args: _in_full(method, *args))(adapter, kernels)
    moments = ()
    if server_optimizer is not None:
        moments = server_optimizer.init(ClientParams(server.adapter, head))
    past = ()
    if staleness is not None:
        check_method(method, staleness)
        past = begin(server, head, staleness)
    return FederatedState(server, head, store, moments, past=past)


def _in_full(method: Method, adapter: Adapter, kernels: Kernels) -> ServerState:
    """The method's state; compiled, so that kernels no method keeps are never decoded."""
    return method.init(
        adapter, {path: quantization.dequantize(kernel) for path, kernel in kernels.items()}
    )


def global_params(method: Method, params: Params, state: FederatedState) -> Params:
    """The parameters of the global model, right for every method.

    Kernels that the method has changed and fully trained parameters are those of the state; the
    global adapter is merged at the server's scale. The result is a plain model without adapters.

    Args:
      method: that of the rounds.
      params: the base parameters.
      state: after any round.
    """
    full = with_head(lora.with_kernels(params, state.server.kernels), state.head)
    return lora.merge(full, state.server.adapter, lora.uniform_gain(method.spec))
