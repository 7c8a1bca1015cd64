"""FSLoRA: each client trains a random sketch of the global adapter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.types import Adapter, Array
from fedjax_lora.lora import Template
from fedjax_lora.methods.averaging import Weights, combine, shares
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    INDEX_BYTES,
    Cohort,
    Method,
    Outcome,
    Server,
    Start,
    Traffic,
    client_gain,
    per_client,
    plain_server,
)
from fedjax_lora.methods.fed_plora import select


def fslora(template: Template, *, weights: Weights = "uniform") -> Method:
    """FSLoRA: a random `r` of the `R` components, scaled by `R / r`; the mean of the changes.

    Client `k` computes with ``a S_k b``, where ``S_k`` is ``R / r_k`` on `r_k` components drawn at
    random and 0 elsewhere, so that ``E[S_k] = I``; only those are trained. The server adds the mean
    of the changes over all participants, not over a component's owners (its own optimizer goes
    around the method, as a server optimizer). The paper's code sends the whole global adapter; what
    a client needs is counted here: the components it has chosen, up with their indices.

    Args:
      template: the sites.
      weights: of the mean over participants.

    Fang et al., "Federated Sketching LoRA", arXiv 2501.19389.
    """

    def sketch(cohort: Cohort) -> Array:
        return select(cohort, cohort.key, jnp.zeros(template.rank), selection="random")

    def broadcast(server: Server, clients: Any, cohort: Cohort) -> Start:
        chosen = sketch(cohort)
        mask = lora.factor_mask(lora.spread(template, chosen))
        stretched = template.server_scale * template.rank / cohort.rank.astype(jnp.float32)
        gain = client_gain(template, cohort._replace(scale=stretched), chosen)
        return Start(lora.keep(per_client(server.adapter), mask), gain, mask)

    def aggregate(
        server: Server, clients: Any, cohort: Cohort, start: Start, result: Adapter
    ) -> Outcome:
        change = jax.tree.map(jnp.subtract, result, start.adapter)  # zero where not chosen
        step = combine(
            change,
            jnp.broadcast_to(
                shares(cohort.weight, weights)[:, None], (cohort.rank.shape[0], template.rank)
            ),
        )
        adapter = jax.tree.map(lambda x, d: x + d, server.adapter, step)
        return Outcome(server._replace(adapter=adapter), clients, cohort.rank)

    def traffic(server: Server, rank: np.ndarray, round: int) -> Traffic:
        one = template.component_size * FLOAT_BYTES
        rank = rank.astype(np.int64)
        index = rank * INDEX_BYTES
        return Traffic(up=rank * one + index, down=rank * one, exact=index)

    return Method(
        init=plain_server,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=traffic,
        averages=True,
    )
