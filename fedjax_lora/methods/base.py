"""What a federated LoRA method is: a record of pure functions over one cohort.

A factory ``my_method(spec, *, option=...)`` returns a `Method`. Everything traced has static
shapes: every adapter is stored at the maximum rank `R`, ranks and choices are data. A round is ::

    start  = method.broadcast(server, clients, cohort)
    result = ... local training from start.adapter where start.trainable ...
    server, clients, rank = method.aggregate(server, clients, cohort, start, result)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import EQUAL_RATES, Adapter, Array, Gain, Kernels, Key, LoRA, Rates
from fedjax_lora.lora import LoraSpec

BOTH = LoRA(True, True)

FLOAT_BYTES = 4
INDEX_BYTES = 4


class ServerState(NamedTuple):
    """What the server carries from round to round."""

    adapter: Adapter  # the global adapter, [(L,) i, R] and [(L,) R, o], read at the server's scale
    kernels: Kernels  # base kernels the method has changed; {} for most
    state: Any = ()  # the method's own


class Cohort(NamedTuple):
    """This round's clients. A weight of 0 means absent: no influence on anything."""

    id: Array  # int32[c]
    rank: Array  # int32[c]
    weight: Array  # float32[c], number of training examples
    scale: Array  # float32[c], multiplier of each client's adapter
    round: Array  # int32[], from 0
    key: Key  # of this round


class ClientInit(NamedTuple):
    """What each client begins the round with."""

    adapter: Adapter  # [c, (L,) i, R], zero at inactive components
    gain: Gain  # [c, (L,) R], 0 at inactive components
    trainable: Adapter  # booleans that broadcast against the factors
    coefficients: Any = ()  # [c, (L,) R], trained with their components, multiply the gain; or ()


class AggregateResult(NamedTuple):
    """What a round leaves behind."""

    server: ServerState
    clients: Any  # the method's own state of each client in the cohort, [c, ...]
    rank: Array  # int32[c], the clients' ranks from now on


class Traffic(NamedTuple):
    """Bytes of one round, per client, as a real client would send and receive them."""

    up: np.ndarray  # int64[c]
    down: np.ndarray  # int64[c]
    exact: Any = 0  # int64[c], of ``up``: indices and the like, which are never rounded
    factors: int = 2  # arrays of a layer that travel up
    common: int = 0  # of each client's ``down``: made of what all of these clients send


def no_check(rank: np.ndarray) -> None:
    """Accept any ranks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A rule for one round. All functions but ``traffic`` and ``check`` are traced.

    Attributes:
      name: of the method, for messages and records.
      paper: where it is described, for example an arXiv number.
      spec: the layers that are adapted, the stored rank and the scale.
      init: ``(adapter, kernels) -> ServerState`` from the global adapter to begin with (a fresh one
        has ``b = 0``; one that was trained before does not) and the base kernels at the adapted
        sites.
      broadcast: ``(server, clients, cohort) -> ClientInit``.
      aggregate: ``(server, clients, cohort, start, result) -> AggregateResult``, where ``result``
        is the clients' adapters after local training, ``[c, ...]``, with trained coefficients
        multiplied into ``a``.
      traffic: ``(server, rank int[c], round) -> Traffic`` of the adapters of a round that begins
        with this server (the head is not the method's business). On the host, present clients only.
      init_clients: the method's own state of all `N` clients, leaves ``[N, ...]``.
      select: for methods that look before they train: the cohort first trains from ``start`` for a
        probe, then really from what ``(server, clients, cohort, start, probed) -> ClientInit``
        returns.
      penalty: added to a client's loss: ``(adapter, rank) -> float32[]``.
      rates: multiplies the learning rate of each factor, and of coefficients.
      project: applied to a client's adapter ``[(L,) i, R]``, ``[(L,) R, o]`` after every local
        step; zeros must stay zeros. What is not trainable keeps its value.
      sends: which factors a client sends; what stays at home is left alone by what happens to
        messages.
      averages: the new components are means of the clients' (weights summing to at most one), so
        that their change is a direction that a server optimizer may follow.
      check: raises `InputError` if the method cannot take these ranks.
    """

    name: str
    paper: str = ""
    spec: LoraSpec
    init: Callable[[Adapter, Kernels], ServerState]
    broadcast: Callable[[ServerState, Any, Cohort], ClientInit]
    aggregate: Callable[[ServerState, Any, Cohort, ClientInit, Adapter], AggregateResult]
    traffic: Callable[[ServerState, np.ndarray, int], Traffic]
    init_clients: Callable[[int], Any] = lambda count: ()
    select: Callable[[ServerState, Any, Cohort, ClientInit, Adapter], ClientInit] | None = None
    penalty: Callable[[Adapter, Array], Array] | None = None
    rates: Rates = EQUAL_RATES
    project: Callable[[Adapter], Adapter] | None = None
    sends: LoRA = BOTH
    averages: bool = False
    check: Callable[[np.ndarray], None] = no_check


def plain_server(adapter: Adapter, kernels: Kernels) -> ServerState:
    """A server that holds a global adapter and leaves the base alone."""
    return ServerState(adapter, {})


def client_gain(spec: LoraSpec, cohort: Cohort, components: Array | Gain) -> Gain:
    """Each client's scale at the given components, 0 elsewhere: ``[c, (L,) R]`` per path."""
    active = lora.spread(spec, components)
    return {
        path: jnp.where(mask, trees.expand(cohort.scale, mask), 0.0)
        for path, mask in active.items()
    }


def per_client(tree: Any) -> Any:
    """A leading axis of one, which broadcasts over the cohort."""
    return jax.tree.map(lambda x: x[None], tree)


def truncated_start(spec: LoraSpec, server: ServerState, cohort: Cohort) -> ClientInit:
    """Each client begins with the first `r` components of the global adapter and trains them."""
    active = lora.prefix_mask(cohort.rank, spec.rank)  # [c, R]
    mask = lora.factor_mask(lora.spread(spec, active))
    start = lora.keep(per_client(server.adapter), mask)
    return ClientInit(start, client_gain(spec, cohort, active), mask)


def whole_start(
    spec: LoraSpec, server: ServerState, cohort: Cohort, trainable: Adapter
) -> ClientInit:
    """Each client computes with all `R` components at the server's scale, and trains some."""
    count = cohort.rank.shape[0]
    everything = jnp.ones((count, spec.rank), bool)
    at_server_scale = cohort._replace(scale=jnp.full(count, spec.server_scale, jnp.float32))
    start = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (count, *x.shape[1:])), per_client(server.adapter)
    )
    return ClientInit(start, client_gain(spec, at_server_scale, everything), trainable)


def symmetric_traffic(spec: LoraSpec) -> Callable[[ServerState, np.ndarray, int], Traffic]:
    """Each client receives and sends its own `r` components."""

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        size = rank.astype(np.int64) * spec.component_size * FLOAT_BYTES
        return Traffic(up=size, down=size)

    return traffic


def need_equal_ranks(name: str, instead: str) -> Callable[[np.ndarray], None]:
    """A check for methods that are defined for one rank only."""

    def check(rank: np.ndarray) -> None:
        if len(set(rank.tolist())) > 1:
            raise InputError(
                f"Method {name!r} needs clients of one rank, got ranks "
                f"{sorted(set(rank.tolist()))}; choose ranks 'fixed(rank=...)', or {instead}."
            )

    return check
