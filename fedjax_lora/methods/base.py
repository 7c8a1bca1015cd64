"""A federated LoRA method: a record of pure functions over one cohort.

A factory ``my_method(spec, *, option=...)`` returns a `Method`. Everything traced has static
shapes: every adapter is stored at the maximum rank `R`; ranks and choices are data.

A driver has many duties: broadcast, probe and select, train with the method's penalty, learning
rates and projection over the base with the method's kernels, aggregate, and carry on the state of
server and clients. `fl.federated.make_round` takes the whole method and does all of it.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import check_fields
from fedjax_lora.core.types import (
    EQUAL_RATES,
    Adapter,
    Array,
    Coefficients,
    Gain,
    Kernels,
    Key,
    LoRA,
    PyTree,
    Rates,
)
from fedjax_lora.lora import LoraSpec

BOTH = LoRA(True, True)

Mix = Literal["changes", "models"]
"""How an answer to the model of an earlier round enters the present one: its change of the factors
is added, or its model is averaged with the present one."""

Tree = TypeVar("Tree")

FLOAT_BYTES = 4
INDEX_BYTES = 4


class ServerState(NamedTuple):
    """The server's values between rounds."""

    adapter: Adapter  # the global adapter, [(L,) i, R] and [(L,) R, o], at the server's scale
    kernels: Kernels  # base kernels that the method has changed; {} for most methods
    state: PyTree = ()  # further state of the method


class Cohort(NamedTuple):
    """The clients of a round. A client of weight 0 is absent and has no influence."""

    id: Array  # int32[c]
    rank: Array  # int32[c]
    weight: Array  # float32[c], number of training examples
    scale: Array  # float32[c], multiplier of each client's adapter
    round: Array  # int32[], from 0
    key: Key  # of this round


class ClientInit(NamedTuple):
    """The values with which each client begins its local training."""

    adapter: Adapter  # [c, (L,) i, R], zero at inactive components
    gain: Gain  # [c, (L,) R], 0 at inactive components
    trainable: Adapter  # booleans that broadcast against the factors
    # Between the factors: [c, (L,) R], or [c, (L,) R, m] for blocks of a core matrix.
    coefficients: Coefficients = ()
    # Booleans that broadcast against the coefficients; (): trained where either factor is.
    trained_coefficients: Coefficients = ()


class AggregateResult(NamedTuple):
    """The values after an aggregation."""

    server: ServerState
    clients: PyTree  # the method's state of each client in the cohort, [c, ...]
    rank: Array  # int32[c], the clients' ranks from now on
    # Booleans that broadcast against the server's adapter: what this round's clients own of it. A
    # server optimizer leaves the rest alone. (): what a present client has trained and sent.
    owned: Adapter | tuple[()] = ()
    # What was added to the kernels, as factors [(L,) i, K] and [(L,) K, o], see `with_added`; ():
    # nothing. A real client, which holds the kernels itself, is sent this.
    added: Adapter | tuple[()] = ()


class Traffic(NamedTuple):
    """Bytes that each client would send and receive in one round."""

    up: np.ndarray  # int64[c]
    down: np.ndarray  # int64[c]
    exact: np.ndarray | int = (
        0  # int64[c], the part of ``up`` that is never compressed, such as indices
    )
    factors: int = 2  # arrays of a layer that travel up
    common: int = 0  # the part of each client's ``down`` that consists of all clients' messages


def no_check(rank: np.ndarray) -> None:
    """Accept any ranks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A rule for one round. All functions but ``traffic`` and ``check`` are traced.

    Attributes:
      name: of the method, for messages and records.
      paper: where it is described, for example an arXiv number.
      spec: the layers that are adapted, the stored rank and the scale.
      init: ``(adapter, kernels) -> ServerState`` from the initial global adapter (``b = 0`` in a
        fresh one, not in one that was trained before) and the base kernels of the adapted layers.
      broadcast: ``(server, clients, cohort) -> ClientInit``.
      aggregate: ``(server, clients, cohort, start, result) -> AggregateResult``, where ``result``
        is the clients' adapters after local training, ``[c, ...]``, with trained coefficients
        multiplied into ``a``.
      traffic: ``(server, rank int[c], round) -> Traffic`` of the adapters of a round that begins
        with this server, without the head. Computed on the host, for present clients only.
      init_clients: ``(N) -> state`` of all `N` clients, leaves ``[N, ...]``.
      keeps: where the state of ``init_clients`` is made and needed: at the server, or by each
        client, which then never sends it.
      select: for methods with a probe: each client first trains from ``start``, and then once more
        from what ``(round, rank int32[c], start, probed) -> ClientInit`` returns. A client does it
        by itself: the probe is not sent.
      trim: ``(rank int32[c], start, result) -> int32[c]``, how many of its components each client
        sends, where that is fewer than it has; ``aggregate`` finds the same by itself.
      penalty: added to a client's loss: ``(adapter, rank) -> float32[]``.
      rates: multiplies the learning rate of each factor, and of coefficients.
      project: applied to a client's adapter ``[(L,) i, R]``, ``[(L,) R, o]`` after every local
        step; zeros must stay zeros. What is not trainable keeps its value.
      sends: which factors a client sends. Transforms of messages leave the others unchanged.
      averages: whether the new components are means of the clients' (weights summing to at most
        one), so that their change is a direction that a server optimizer may follow.
      late: how answers to the model of an earlier round can be mixed into the present one. For
        ``changes`` factors must mean the same in both rounds; for ``models`` the aggregate must be
        a mean by examples in which the server can take part as a client of rank `R`.
      clients_hold_kernels: whether clients train on the base kernels that the method has changed;
        False: on those of the beginning, where the change is more than a client can be sent.
      check: raises `InputError` if the method cannot take these ranks.
    """

    name: str
    paper: str = ""
    spec: LoraSpec
    init: Callable[[Adapter, Kernels], ServerState]
    broadcast: Callable[[ServerState, PyTree, Cohort], ClientInit]
    aggregate: Callable[[ServerState, PyTree, Cohort, ClientInit, Adapter], AggregateResult]
    traffic: Callable[[ServerState, np.ndarray, int], Traffic]
    init_clients: Callable[[int], PyTree] = lambda count: ()
    keeps: Literal["server", "client"] = "server"
    select: Callable[[Array, Array, ClientInit, Adapter], ClientInit] | None = None
    trim: Callable[[Array, Adapter, Adapter], Array] | None = None
    penalty: Callable[[Adapter, Array], Array] | None = None
    rates: Rates = EQUAL_RATES
    project: Callable[[Adapter], Adapter] | None = None
    sends: LoRA = BOTH
    averages: bool = False
    late: tuple[Mix, ...] = ()
    clients_hold_kernels: bool = True
    check: Callable[[np.ndarray], None] = no_check

    def __post_init__(self) -> None:
        """Refuse words that are none of the choices."""
        check_fields(self)


def plain_server(adapter: Adapter, kernels: Kernels) -> ServerState:
    """A server with a global adapter and an unchanged base."""
    return ServerState(adapter, {})


def client_kernels(method: Method, server: ServerState) -> Kernels:
    """The kernels that clients have in place of the base's own; ``{}`` if none."""
    return server.kernels if method.clients_hold_kernels else {}


def with_added(kernels: Kernels, added: Adapter) -> Kernels:
    """The kernels with products added: ``W + a b``, for server and real clients alike.

    Args:
      kernels: ``[(L,) i, o]`` by path.
      added: factors ``[(L,) i, K]`` and ``[(L,) K, o]`` of these paths.
    """
    return {
        path: kernels[path] + linalg.matmul(*pair).astype(kernels[path].dtype)
        for path, pair in added.items()
    }


def client_gain(spec: LoraSpec, cohort: Cohort, components: Array | Gain) -> Gain:
    """Each client's scale at its active components, 0 elsewhere: ``[c, (L,) R]`` per path."""
    active = lora.spread(spec, components)
    return {
        path: jnp.where(mask, trees.expand(cohort.scale, mask), 0.0)
        for path, mask in active.items()
    }


def if_any_present(cohort: Cohort, new: Tree, old: Tree) -> Tree:
    """The new values, or the old ones bit for bit if no client is present."""
    present = jnp.any(cohort.weight > 0)
    return jax.tree.map(lambda n, o: jnp.where(present, n, o), new, old)


def per_client(tree: Tree) -> Tree:
    """Add a leading axis of one, which broadcasts over the cohort."""
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
    """Make a check for methods that are defined for equal ranks only."""

    def check(rank: np.ndarray) -> None:
        if len(set(rank.tolist())) > 1:
            raise InputError(
                f"Method {name!r} needs clients of one rank, got ranks "
                f"{sorted(set(rank.tolist()))}; choose ranks 'fixed(rank=...)', or {instead}."
            )

    return check
