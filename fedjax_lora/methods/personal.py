"""Methods in which a part of the adapter stays on its client."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import adapters
from fedjax_lora.adapters import Template
from fedjax_lora.methods.averaging import Weights, combine, keep_unowned, owners, shares
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    Cohort,
    Method,
    Outcome,
    Server,
    Start,
    Traffic,
    need_equal_ranks,
    plain_server,
    truncated_start,
)
from fedjax_lora.types import Adapter, LoRA


def fedsa_lora(template: Template, *, weights: Weights = "examples") -> Method:
    """FedSA-LoRA: `a` is averaged, each client keeps its own `b`.

    Both are trained; only `a` is sent. A client's `b` is where it left it when it last took part,
    zero before. There is no global model; as one to look at, the server holds the mean of the `b`
    that this round's clients have, which no client sends or receives. All clients have one rank.

    Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning",
    arXiv 2410.01463.
    """

    def init_clients(count: int) -> dict[str, Any]:
        own = {path: pair.b for path, pair in template.shapes().items()}
        return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), own)

    def broadcast(server: Server, clients: Any, cohort: Cohort) -> Start:
        start = truncated_start(template, server, cohort)
        own = {path: LoRA(pair.a, clients[path]) for path, pair in start.adapter.items()}
        return start._replace(adapter=adapters.keep(own, start.trainable))

    def aggregate(
        server: Server, clients: Any, cohort: Cohort, start: Start, result: Adapter
    ) -> Outcome:
        own = owners(cohort, template.rank)
        mean = combine(result, jnp.where(own, shares(cohort.weight, weights)[:, None], 0.0))
        adapter = keep_unowned(mean, server.adapter, jnp.any(own, axis=0))
        kept = {path: pair.b for path, pair in result.items()}
        return Outcome(server._replace(adapter=adapter), kept, cohort.rank)

    inputs = sum(s.adapted * s.inputs for s in template.sites)

    def traffic(server: Server, rank: np.ndarray, round: int) -> Traffic:
        size = rank.astype(np.int64) * inputs * FLOAT_BYTES
        return Traffic(up=size, down=size, factors=1)

    return Method(
        init=plain_server,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=traffic,
        init_clients=init_clients,
        check=need_equal_ranks("fedsa_lora", "a method with one global model"),
    )
