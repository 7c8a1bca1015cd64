"""FedMomentum: the mean product's leading components stay trainable, the others join the base."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import linalg
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, Kernels, LoRA
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
    if_any_present,
    with_added,
)
from fedjax_lora.methods.florist import components_kept
from fedjax_lora.methods.svd import (
    Sigma,
    each_layer,
    only_adapted,
    rescaled_start,
    split,
    weighted_stack,
)


@checked_options
def fedmomentum(
    spec: LoraSpec,
    *,
    energy: float = 0.9999,
    weights: Weights = "examples",
    sigma: Sigma = "both",
) -> Method:
    """FedMomentum: mean of the products; top `R` components stay, the next ones join the base.

    ``M = sum_k p_k s_k a_k b_k = U S V^T``: the `R` leading components are the new adapter, so that
    training goes on in the directions in which it went; the following ones are added to the
    kernels, as many as it takes to have this share of the energy of `M` in all. Exact but for the
    rest of the energy, where FlexLoRA loses all beyond `R`, and without FLoRA's restart.

    The paper's clients have one rank, and its SVD is a randomised one. Here it is exact, and a
    client of rank `r` begins with the first `r` components of the adapter, as in FlexLoRA.

    Args:
      spec: the adapted layers.
      energy: share of ``sum_j S_j^2`` that is kept in adapter and kernels together; 1 for all.
      weights: of the mean.
      sigma: the factor that carries the singular values; the paper halves them.

    Yan et al., "FedMomentum: Preserving LoRA Training Momentum in Federated Fine-Tuning",
    arXiv 2603.08014.

    Raises:
      InputError: an energy outside (0, 1].
    """
    if not 0 < energy <= 1:
        raise InputError(f"Method 'fedmomentum' needs an energy in (0, 1], got {energy}.")
    rule = _FedMomentum(spec, energy, weights, sigma)
    return Method(
        name="fedmomentum",
        paper="arXiv 2603.08014",
        spec=spec,
        init=rule.init,
        broadcast=lambda server, clients, cohort: rescaled_start(spec, server, cohort, sigma),
        aggregate=rule.aggregate,
        traffic=rule.traffic,
    )


@dataclasses.dataclass(frozen=True)
class _FedMomentum:
    """The functions of `fedmomentum`.

    The server's state are the numbers of components that the last round has added to the kernels,
    ``int32[(L)]`` per path.
    """

    spec: LoraSpec
    energy: float
    weights: Weights
    sigma: Sigma

    def init(self, adapter: Adapter, kernels: Kernels) -> ServerState:
        """Nothing has been added yet."""
        added = {s.path: jnp.zeros(s.stack, jnp.int32) for s in self.spec.targets}
        return ServerState(adapter, kernels, added)

    def aggregate(
        self, server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        """The leading components of the mean product; the following ones in the kernels."""
        share = shares(cohort.weight, self.weights)
        share = jnp.broadcast_to(share[:, None], (share.shape[0], self.spec.rank))
        layers = {
            path: each_layer(self._layer, (*pair, start.gain[path]), share, ())
            for path, pair in result.items()
        }
        adapter = only_adapted(self.spec, {path: pair for path, (pair, _, _) in layers.items()})
        added = {path: pair for path, (_, pair, _) in layers.items()}
        number = {path: count for path, (_, _, count) in layers.items()}
        kernels = with_added(server.kernels, added)
        new = if_any_present(cohort, ServerState(adapter, kernels, number), server)
        return AggregateResult(new, clients, cohort.rank, added=added)

    def _layer(self, a: Array, b: Array, gain: Array, share: Array) -> tuple[LoRA, LoRA, Array]:
        """One layer's factors, those of what joins its kernel, and how many these are."""
        most, stacks = self.spec.rank, weighted_stack(LoRA(a, b), gain, share)
        u, s, vt = linalg.svd(stacks, min(*stacks.a.shape, stacks.b.shape[1]))
        kept = components_kept(s, self.energy)
        pair = split(u[:, :most], s[:most] / self.spec.server_scale, vt[:most], self.sigma)
        joins = jnp.where(lora.prefix_mask(kept, s.size), s, 0.0)[most:]
        return pair, LoRA(u[:, most:] * joins[None], vt[most:]), jnp.maximum(kept - most, 0)

    def traffic(self, server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        """A client's components each way, and down what the round before has added to the base."""
        size = rank.astype(np.int64) * self.spec.component_size * FLOAT_BYTES
        joined = 0
        for target in self.spec.targets:
            added = np.atleast_1d(np.asarray(server.state[target.path], np.int64))
            chosen = added[list(target.layers) if target.layers else slice(None)]
            joined += int(chosen.sum()) * (target.inputs + target.outputs) * FLOAT_BYTES
        return Traffic(up=size, down=size + joined, common=joined)
