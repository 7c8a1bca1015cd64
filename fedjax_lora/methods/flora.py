"""Methods that stack the clients' factors and add the product to the base."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Kernels
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, shares
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    ServerState,
    Traffic,
    truncated_start,
    with_added,
)
from fedjax_lora.methods.svd import weighted_stack


@checked_options
def flora(
    spec: LoraSpec,
    *,
    weights: Weights = "examples",
    init: Literal["kaiming", "gaussian"] = "kaiming",
) -> Method:
    """FLoRA: the stack of all factors is merged into the base, adapters start afresh each round.

    ``W <- W + [p_1 s_1 a_1 ... p_K s_K a_K] [b_1; ...; b_K] = W + sum_k p_k s_k a_k b_k`` exactly,
    for any ranks; only one factor carries the weights. The next round begins with a new random
    ``a`` and ``b = 0``, so a round's first gradient of ``a`` is zero. Every participant downloads
    the stack of the whole cohort. The fresh ``a`` is one random matrix per round, cut to each
    client's rank (whether clients share it does not change what the server computes).

    Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
    Adaptations", arXiv 2409.05976.
    """

    def init_server(adapter: Adapter, kernels: Kernels) -> ServerState:
        # What is learnt is in the kernels: between rounds the adapter is always zero.
        learnt = lora.deltas(adapter, lora.uniform_gain(spec))
        kernels = {path: x + learnt[path].astype(x.dtype) for path, x in kernels.items()}
        return ServerState(jax.tree.map(jnp.zeros_like, adapter), kernels)

    def broadcast(server: ServerState, clients: Any, cohort: Cohort) -> ClientInit:
        fresh = lora.init(spec, jax.random.fold_in(cohort.key, 0), method=init)
        return truncated_start(spec, server._replace(adapter=fresh), cohort)

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        share = shares(cohort.weight, weights)
        added = {
            path: weighted_stack(pair, start.gain[path], share) for path, pair in result.items()
        }
        new = server._replace(kernels=with_added(server.kernels, added))
        return AggregateResult(new, clients, cohort.rank, added=added)

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        size = rank.astype(np.int64) * spec.component_size * FLOAT_BYTES
        stack = int(size.sum())
        return Traffic(up=size, down=np.full_like(size, stack), common=stack)

    return Method(
        name="flora",
        paper="arXiv 2409.05976",
        spec=spec,
        init=init_server,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=traffic,
    )
