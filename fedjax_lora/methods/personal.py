"""Methods in which a part of the adapter stays on its client."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import adapters
from fedjax_lora.adapters import Template
from fedjax_lora.methods.averaging import Weights, fedit
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    Cohort,
    Method,
    Outcome,
    Server,
    Start,
    Traffic,
    need_equal_ranks,
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

    mean = fedit(template, weights=weights)

    def aggregate(
        server: Server, clients: Any, cohort: Cohort, start: Start, result: Adapter
    ) -> Outcome:
        kept = {path: pair.b for path, pair in result.items()}
        return mean.aggregate(server, clients, cohort, start, result)._replace(clients=kept)

    def traffic(server: Server, rank: np.ndarray, round: int) -> Traffic:
        size = rank.astype(np.int64) * template.factor_sizes.a * FLOAT_BYTES
        return Traffic(up=size, down=size, factors=1)

    return dataclasses.replace(
        mean,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=traffic,
        sends=LoRA(True, False),
        init_clients=init_clients,
        averages=False,  # half of what the server holds is nobody's
        check=need_equal_ranks("fedsa_lora", "a method with one global model"),
    )
