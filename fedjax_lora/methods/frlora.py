"""FRLoRA: updates are summed up in the base, adapters restart from the base's own directions."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Kernels, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, masked_mean
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    ServerState,
    Traffic,
    whole_start,
    with_added,
)


@checked_options
def frlora(spec: LoraSpec, *, weights: Weights = "examples") -> Method:
    """FRLoRA: the averaged adapter's change joins the base, which it restarts from each round.

    ``a_0``, ``b_0`` are the `R` leading singular components of the pretrained kernels, with the
    roots of the singular values in each (`fedjax_lora.lora.principal`); the kernels keep the rest,
    so that ``W + s a_0 b_0`` is the pretrained model. Every round begins with ``a_0`` and ``b_0``
    again; after it ``W <- W + s a b - s a_0 b_0`` with the averaged factors `a`, `b`. The base
    moves by rank `2R` a round, and so beyond any fixed rank in the end, and clients never drift
    away from its principal space.

    The paper's clients have one rank. Without some of its principal components the pretrained model
    would be broken, so a client of rank `r` here computes with all `R` and trains the first `r`;
    each component is averaged over those who trained it.

    Args:
      spec: the adapted layers.
      weights: of the means. The released code for label skew has a table of sizes and overwrites it
        with ones, which is ``uniform``.

    Yan et al., "Federated Residual Low-Rank Adaptation of Large Language Models", ICLR 2025,
    code IAMJackYan/FRLoRA.
    """
    mean = masked_mean(spec, weights=weights)

    def init(adapter: Adapter, kernels: Kernels) -> ServerState:
        learnt = lora.deltas(adapter, lora.uniform_gain(spec))
        begun = {path: x + learnt[path].astype(x.dtype) for path, x in kernels.items()}
        return ServerState(*lora.principal(spec, begun))

    def broadcast(server: ServerState, clients: Any, cohort: Cohort) -> ClientInit:
        trained = lora.spread(spec, lora.prefix_mask(cohort.rank, spec.rank))
        return whole_start(spec, server, cohort, lora.factor_mask(trained))

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        outcome = mean.aggregate(server, clients, cohort, start, result)
        added = {}
        for path, (first_a, first_b) in server.adapter.items():
            a, b = outcome.server.adapter[path]
            left = jnp.concatenate([a - first_a, first_a], axis=-1)
            right = jnp.concatenate([b, b - first_b], axis=-2)
            added[path] = LoRA(spec.server_scale * left, right)
        new = server._replace(kernels=with_added(server.kernels, added))
        return AggregateResult(new, clients, cohort.rank, added=added)

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        component = spec.component_size * FLOAT_BYTES
        up = rank.astype(np.int64) * component
        # The averaged factors: every client can subtract the first ones itself.
        return Traffic(up=up, down=np.full_like(up, spec.rank * component))

    return Method(
        name="frlora",
        paper="ICLR 2025",
        spec=spec,
        init=init,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=traffic,
    )
