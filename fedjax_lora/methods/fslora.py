"""FSLoRA: each client trains a random sketch of the global adapter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, combine, shares
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    INDEX_BYTES,
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    ServerState,
    Traffic,
    client_gain,
    per_client,
    plain_server,
)
from fedjax_lora.methods.fed_plora import Indices, chosen_modules, index_sets, module_norms


@checked_options
def fslora(spec: LoraSpec, *, indices: Indices = "layer", weights: Weights = "uniform") -> Method:
    """FSLoRA: a random `r` of the `R` components, scaled by `R / r`; the mean of the changes.

    Client `k` computes with ``a S_k b``, where ``S_k`` is ``R / r_k`` on `r_k` components drawn at
    random and 0 elsewhere, so that ``E[S_k] = I``; only those are trained. The server adds the mean
    of the changes over all participants, not over a component's owners (its own optimizer goes
    around the method, as a server optimizer). The paper's code sends the whole global adapter; what
    a client needs is counted here: the components it has chosen, up with their indices.

    Args:
      spec: the adapted layers.
      indices: one sketch per layer, as the released code draws them, or one for all layers.
      weights: of the mean over participants.

    Fang et al., "Federated Sketching LoRA", arXiv 2501.19389.
    """

    def broadcast(server: ServerState, clients: Any, cohort: Cohort) -> ClientInit:
        size = {path: module_norms(pair) for path, pair in server.adapter.items()}
        chosen = chosen_modules(spec, size, cohort, selection="random", indices=indices)
        mask = lora.factor_mask(chosen)
        stretched = spec.server_scale * spec.rank / cohort.rank.astype(jnp.float32)
        gain = client_gain(spec, cohort._replace(scale=stretched), chosen)
        return ClientInit(lora.keep(per_client(server.adapter), mask), gain, mask)

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        change = jax.tree.map(jnp.subtract, result, start.adapter)  # zero where not chosen
        step = combine(
            change,
            jnp.broadcast_to(
                shares(cohort.weight, weights)[:, None], (cohort.rank.shape[0], spec.rank)
            ),
        )
        adapter = jax.tree.map(lambda x, d: x + d, server.adapter, step)
        return AggregateResult(server._replace(adapter=adapter), clients, cohort.rank)

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        one = spec.component_size * FLOAT_BYTES
        rank = rank.astype(np.int64)
        index = rank * index_sets(spec, indices) * INDEX_BYTES
        return Traffic(up=rank * one + index, down=rank * one, exact=index)

    return Method(
        name="fslora",
        paper="arXiv 2501.19389",
        spec=spec,
        init=plain_server,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=traffic,
        averages=True,
        late=("changes",),
    )
