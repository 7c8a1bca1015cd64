"""Methods in which a part of the adapter stays on its client."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, Kernels, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, fedit
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    ServerState,
    Traffic,
    need_equal_ranks,
    per_client,
    plain_server,
    truncated_start,
)


class ClientFactors(NamedTuple):
    """The factors that stay on the clients."""

    trained: Array  # bool[N], whether the client has taken part
    b: dict[str, Array]  # [N, (L,) R, o], where it left it


@checked_options
def fedsa_lora(spec: LoraSpec, *, weights: Weights = "examples") -> Method:
    """FedSA-LoRA: `a` is averaged, each client keeps its own `b`.

    Both are trained; only `a` is sent. A client's `b` is where it left it when it last took part;
    before, it is that of the adapter the run began with (zero in a fresh one). There is no global
    model; for evaluation, the server keeps the mean of the `b` that this round's clients have,
    which no client sends or receives. All clients have one rank.

    Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning",
    arXiv 2410.01463.
    """

    def init(adapter: Adapter, kernels: Kernels) -> ServerState:
        first = {path: pair.b for path, pair in adapter.items()}
        return plain_server(adapter, kernels)._replace(state=first)

    def init_clients(count: int) -> ClientFactors:
        shapes = {path: pair.b for path, pair in spec.shapes().items()}
        b = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)
        return ClientFactors(jnp.zeros(count, bool), b)

    def broadcast(server: ServerState, clients: ClientFactors, cohort: Cohort) -> ClientInit:
        start = truncated_start(spec, server, cohort)
        b = trees.where(clients.trained, clients.b, per_client(server.state))
        own = {path: LoRA(pair.a, b[path]) for path, pair in start.adapter.items()}
        return start._replace(adapter=lora.keep(own, start.trainable))

    mean = fedit(spec, weights=weights)

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        kept = ClientFactors(
            jnp.ones_like(cohort.id, bool), {path: pair.b for path, pair in result.items()}
        )
        return mean.aggregate(server, clients, cohort, start, result)._replace(clients=kept)

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        size = rank.astype(np.int64) * spec.factor_sizes.a * FLOAT_BYTES
        return Traffic(up=size, down=size, factors=1)

    return dataclasses.replace(
        mean,
        name="fedsa_lora",
        paper="arXiv 2410.01463",
        init=init,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=traffic,
        sends=LoRA(True, False),
        init_clients=init_clients,
        keeps="client",
        averages=False,  # the server's `b` belongs to no client
        late=(),
        check=need_equal_ranks("fedsa_lora", "a method with one global model"),
    )
