"""What changes from round to round, what is decided before one, and what it reports."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lora.core import quantization, trees
from fedjax_lora.core.types import Adapter, Array, Batches, ClientParams, Kernels, Params
from fedjax_lora.federated import transforms
from fedjax_lora.methods.base import Method, ServerState

Head = Literal["average", "frozen", "local"]


class ClientStore(NamedTuple):
    """What belongs to single clients and outlives a round; leaves ``[N, ...]``."""

    method: Any  # the method's own
    head: Any  # each client's head if heads are local, else ()


class FederatedState(NamedTuple):
    """Everything that changes from round to round on the device."""

    server: ServerState
    head: Params  # the global head; with local heads the one they began with
    clients: ClientStore
    optimizer: Any = ()  # state of the server optimizer


class Plan(NamedTuple):
    """What the host decides about a round.

    An id of `N` (beyond the last) is an absent client, which only fills a place; a client of weight
    0 was drawn but does not answer.
    """

    id: Any  # int32[c]
    rank: Any  # int32[c]
    weight: Any  # float32[c], training examples of the client; 0 if nothing comes from it
    batches: Batches
    rate: Any  # float32[], learning rate
    round: Any  # int32[], from 0


class RoundMetrics(NamedTuple):
    """What a round reports, per client of the cohort."""

    loss: Array  # float32[c], mean training loss
    examples: Array  # float32[c], examples processed
    rejected: Array  # bool[c], updates left out: not finite, or outliers
    rank: Array  # int32[c], ranks after the round
    measured: Any = ()  # what was measured besides, a dictionary of JSON values
    seconds: Any = ()  # how long the parts of a measured round took, by name


def init_state(
    method: Method,
    adapter: Adapter,
    kernels: Kernels,
    head: Params,
    *,
    clients: int,
    heads: Head,
    server_optimizer: transforms.ServerOptimizer | None = None,
) -> FederatedState:
    """The state before the first round.

    Args:
      method: the federated method.
      adapter: the global adapter to begin with.
      kernels: base kernels at the adapted sites, however they are stored; a method that changes
        them keeps them in float32.
      head: the initial task head.
      clients: `N`.
      heads: ``average`` (global, trained), ``frozen``, or ``local`` (each client keeps its own).
      server_optimizer: that of the rounds.
    """
    own = ()
    if heads == "local":
        own = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (clients, *x.shape)), head)
    store = ClientStore(method.init_clients(clients), own)
    server = jax.jit(lambda *args: _in_full(method, *args))(adapter, kernels)
    moments = ()
    if server_optimizer is not None:
        moments = server_optimizer.init(ClientParams(server.adapter, head))
    return FederatedState(server, head, store, moments)


def _in_full(method: Method, adapter: Adapter, kernels: Kernels) -> ServerState:
    """The method's state; compiled, so that kernels no method keeps are never decoded."""
    return method.init(
        adapter, {path: quantization.dequantize(kernel) for path, kernel in kernels.items()}
    )


def with_kernels(base: Params, kernels: Kernels) -> Params:
    """The base with the kernels a method has changed; arrays are shared, not copied.

    A base with one array per layer keeps that form, see
    `fedjax_lora.models.layer_stack.split_layers`.
    """
    if not kernels:
        return base
    old = trees.flat(base)
    new = {f"{path}/kernel": kernel for path, kernel in kernels.items()}
    return trees.replace(
        base, {p: tuple(x) if isinstance(old[p], tuple) else x for p, x in new.items()}
    )
