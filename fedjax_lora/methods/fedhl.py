"""FedHL: the server keeps the whole update, clients correct it by what they have changed."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, Kernels, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import shares
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
def fedhl(
    spec: LoraSpec,
    *,
    weights: Literal["truncation", "examples", "uniform"] = "truncation",
    eps: float = 0.01,
    sigma: Sigma = "a",
) -> Method:
    """FedHL: the server keeps the update at full rank and adds what clients changed of their cut.

    ``D <- D + sum_k p_k (s_k a_k b_k - D^(r_k))`` with ``D`` the update of the kernels so far and
    ``D^(r_k)`` its best rank-`r_k` approximation, with which client `k` begins on the first base.
    What the cut leaves away is not lost, as it is in HLoRA: the server still has it. With all ranks
    as high as that of `D` this is HLoRA.

    The global model, which is evaluated and exported, has all of `D`: its `R` leading components
    are the global adapter, the rest is in the kernels. Clients do not receive the rest.

    Args:
      spec: the adapted layers.
      weights: ``truncation`` are the paper's, which minimise the drift of the gradients in its
        bound: ``p_k ~ 1 / (t_k + eps)``, with ``t_k = ||D - D^(r_k)||_F^2 / ||D||_F^2`` over all
        layers. They do not depend on how many examples a client has; the other two do as elsewhere.
      eps: how much more than others a client may count from which nothing is cut: at most
        ``1 + 1 / eps`` times as much as one from which everything is. The paper's value and its
        unit are not known here; this one is relative to the energy of `D`.
      sigma: the factor that carries the singular values (not known from the paper; as HLoRA).

    Peng et al., "FedHL: Federated Learning for Heterogeneous Low-Rank Adaptation via Unbiased
    Aggregation", arXiv 2505.18494.

    Raises:
      InputError: an eps that is not above 0 and finite.
    """
    if not 0 < eps < math.inf:
        raise InputError(f"Method 'fedhl' needs an eps above 0 and finite, got {eps}.")
    rule = _FedHL(spec, weights, eps, sigma)
    return Method(
        name="fedhl",
        paper="arXiv 2505.18494",
        spec=spec,
        init=rule.init,
        broadcast=lambda server, clients, cohort: rescaled_start(spec, server, cohort, sigma),
        aggregate=rule.aggregate,
        traffic=symmetric_traffic(spec),
        clients_hold_kernels=False,
    )


@dataclasses.dataclass(frozen=True)
class _FedHL:
    """The functions of `fedhl`; the server's state is the update without its leading components."""

    spec: LoraSpec
    weights: Literal["truncation", "examples", "uniform"]
    eps: float
    sigma: Sigma

    def init(self, adapter: Adapter, kernels: Kernels) -> ServerState:
        """Nothing of the update is beyond the adapter."""
        return ServerState(adapter, kernels, jax.tree.map(jnp.zeros_like, kernels))

    def aggregate(
        self, server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        """The update with the clients' changes, and its leading components."""
        share = self._shares(server, cohort)
        share = jnp.broadcast_to(share[:, None], (share.shape[0], self.spec.rank))
        layers = {
            path: each_layer(
                self._layer,
                (*pair, start.gain[path], *start.adapter[path]),
                share,
                per_client((*server.adapter[path], server.state[path])),
            )
            for path, pair in result.items()
        }
        adapter = only_adapted(self.spec, {path: pair for path, (pair, _) in layers.items()})
        rest = {path: beyond for path, (_, beyond) in layers.items()}
        kernels = {
            path: kernel + (rest[path] - server.state[path]).astype(kernel.dtype)
            for path, kernel in server.kernels.items()
        }
        new = if_any_present(cohort, ServerState(adapter, kernels, rest), server)
        return AggregateResult(new, clients, cohort.rank)

    def _layer(
        self,
        a: Array,
        b: Array,
        gain: Array,
        first_a: Array,
        first_b: Array,
        share: Array,
        old_a: Array,
        old_b: Array,
        beyond: Array,
    ) -> tuple[LoRA, Array]:
        """One layer's leading components, and what of the update is beyond them."""
        scale = self.spec.server_scale
        trained = linalg.matmul(*weighted_stack(LoRA(a, b), gain, share))
        begun = linalg.matmul(*weighted_stack(LoRA(first_a, first_b), gain, share))
        update = beyond[0] + scale * linalg.matmul(old_a[0], old_b[0]) + (trained - begun)
        u, s, vt = linalg.svd(linalg.as_product(update), self.spec.rank)
        pair = split(u, s / scale, vt, self.sigma)
        return pair, update - scale * linalg.matmul(*pair)

    def _shares(self, server: ServerState, cohort: Cohort) -> Array:
        """The weights of the cohort, ``[c]``."""
        if self.weights != "truncation":
            return shares(cohort.weight, self.weights)
        cut = ~lora.prefix_mask(cohort.rank, self.spec.rank)  # [c, R]
        everything = jnp.ones((1, self.spec.rank), bool)
        whole = self._energy(server, everything)
        lost = trees.safe_divide(self._energy(server, cut), whole, jnp.zeros(()))
        weight = jnp.where(cohort.weight > 0, 1 / (lost + self.eps), 0.0)
        return shares(weight)

    def _energy(self, server: ServerState, components: Array) -> Array:
        """The energy of these components ``[c, R]`` and of all beyond the adapter: ``[c]``."""
        chosen, total = components.astype(jnp.float32), jnp.zeros(())
        for path, (a, b) in server.adapter.items():
            gram = linalg.matmul(a.mT, a) * linalg.matmul(b, b.mT) * self.spec.server_scale**2
            gram = jnp.sum(gram.reshape(-1, *gram.shape[-2:]), axis=0)
            inside = jnp.sum(linalg.matmul(chosen, gram) * chosen, axis=-1)
            total = total + jnp.maximum(inside, 0.0) + jnp.sum(jnp.square(server.state[path]))
        return total
