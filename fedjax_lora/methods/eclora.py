"""ECLoRA: what the SVD of one round cuts off is added to the mean of the next."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lora.core import linalg
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, Kernels, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, shares
from fedjax_lora.methods.base import (
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    ServerState,
    if_any_present,
    per_client,
    symmetric_traffic,
)
from fedjax_lora.methods.svd import (
    Sigma,
    each_layer,
    only_adapted,
    rescaled_start,
    split,
    weighted_stack,
)


@checked_options
def eclora(spec: LoraSpec, *, weights: Weights = "examples", sigma: Sigma = "b") -> Method:
    """ECLoRA: FlexLoRA with error feedback of what the SVD has cut off in the round before.

    ``M = sum_k p_k s_k a_k b_k + E = U S V^T``; the `R` leading components are the new adapter,
    ``E <- M - U_R S_R V_R^T``. The server keeps `E`; no client receives it, and it is no part of
    the global model. Only what the server's cut at `R` loses comes back, not what the cut to a
    client's own rank loses.

    This is what the paper says: decompose the mean compensated by the earlier error. Its released
    code decomposes the *uncompensated* mean and books the error against the compensated one, so
    that the error grows and is never used; what that code computes is ``flexlora``. Both use a
    randomised SVD of rank `R` with `R` more columns to be fast; here the SVD is exact.

    Args:
      spec: the adapted layers.
      weights: of the mean.
      sigma: the factor that carries the singular values; as the released code and FlexLoRA.

    Ning et al., "Federated Fine-Tuning on Heterogeneous LoRAs With Error-Compensated Aggregation",
    IEEE Transactions on Neural Networks and Learning Systems 2025, code ningwanyi/ECLoRA.
    """
    rule = _ECLoRA(spec, weights, sigma)
    return Method(
        name="eclora",
        paper="IEEE TNNLS 2025",
        spec=spec,
        init=rule.init,
        broadcast=lambda server, clients, cohort: rescaled_start(spec, server, cohort, sigma),
        aggregate=rule.aggregate,
        traffic=symmetric_traffic(spec),
    )


@dataclasses.dataclass(frozen=True)
class _ECLoRA:
    """The functions of `eclora`; the server's state is the error, ``[(L,) i, o]`` per path."""

    spec: LoraSpec
    weights: Weights
    sigma: Sigma

    def init(self, adapter: Adapter, kernels: Kernels) -> ServerState:
        """Nothing has been cut off yet."""
        return ServerState(adapter, {}, jax.tree.map(jnp.zeros_like, kernels))

    def aggregate(
        self, server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        """The leading components of the compensated mean, and what they miss."""
        share = shares(cohort.weight, self.weights)
        share = jnp.broadcast_to(share[:, None], (share.shape[0], self.spec.rank))
        layers = {
            path: each_layer(
                self._layer, (*pair, start.gain[path]), share, per_client((server.state[path],))
            )
            for path, pair in result.items()
        }
        adapter = only_adapted(self.spec, {path: pair for path, (pair, _) in layers.items()})
        error = {path: missed for path, (_, missed) in layers.items()}
        new = if_any_present(cohort, ServerState(adapter, {}, error), server)
        return AggregateResult(new, clients, cohort.rank)

    def _layer(
        self, a: Array, b: Array, gain: Array, share: Array, error: Array
    ) -> tuple[LoRA, Array]:
        """One layer's factors, and the new error."""
        compensated = linalg.matmul(*weighted_stack(LoRA(a, b), gain, share)) + error[0]
        u, s, vt = linalg.svd(linalg.as_product(compensated), self.spec.rank)
        pair = split(u, s / self.spec.server_scale, vt, self.sigma)
        return pair, compensated - self.spec.server_scale * linalg.matmul(*pair)
