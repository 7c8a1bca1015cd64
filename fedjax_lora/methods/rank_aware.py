"""Methods that weigh each component by its owners and then factor the product again."""

from typing import Literal

import jax.numpy as jnp

from fedjax_lora.adapters import Template
from fedjax_lora.methods.averaging import Weights, combine, keep_unowned, owner_shares, owners
from fedjax_lora.methods.base import Cohort, Method, Server, Start
from fedjax_lora.methods.products import Sigma, refactoring, weighted_stack
from fedjax_lora.types import Adapter, Array, LoRA


def raflora(
    template: Template,
    *,
    empty: Literal["keep", "drop"] = "keep",
    weights: Weights = "examples",
    sigma: Sigma = "both",
) -> Method:
    """raFLoRA: mean of products with each component weighted over its owners, then SVD.

    ``M = sum_j sum_{k: r_k > j} (n_k / N_j) s_k a_k[:, j] b_k[j, :]`` with ``N_j`` the examples of
    the clients that own component `j`. The paper groups the components between two rank levels of
    the federation into partitions; all components of a partition have the same owners, so this is
    the same sum. With equal ranks it is FlexLoRA. High components are not diluted by clients that
    do not have them, which would let their energy decay geometrically over the rounds.

    Args:
      template: the sites.
      empty: a component without an owner in the cohort enters with the server's value, or not at
        all. A public re-implementation drops it, the paper's rule is not known; dropping loses in
        one round the energy that the method is there to keep.
      weights: of the means.
      sigma: the factor that carries the singular values; the re-implementation halves them.

    Wu et al., "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client
    Heterogeneity", arXiv 2602.13486.
    """

    def stacks(server: Server, cohort: Cohort, start: Start, result: Adapter, path: str) -> LoRA:
        owned = owners(cohort, template.rank)
        share = owner_shares(cohort.weight, owned, weights)
        product = weighted_stack(result[path], start.gain[path], share)
        if empty == "drop":
            return product
        unowned = ~jnp.any(owned, axis=0)
        old = _at_scale(server.adapter[path], jnp.where(unowned, template.server_scale, 0.0))
        return _join(product, old)

    return refactoring(template, stacks, sigma=sigma)


def rb_lora(template: Template, *, weights: Weights = "examples", sigma: Sigma = "b") -> Method:
    """RB-LoRA: rank-balanced mean of the factors, product, SVD.

    Component `j` of the n-weighted mean of zero-padded factors is multiplied by
    ``n / sum_{k: r_k > j} n_k``, which makes it the masked mean; the product of these factors is
    factored again and each client gets its `r` leading components. The public code computes that
    multiplier but holds no call of it; that it acts on both factors is the reading of
    "rank-wise components", and the code's ``V`` in place of ``V^T`` is taken as a slip.

    "RB-LoRA: Rank-Balanced Aggregation for Low-Rank Adaptation with Federated Fine-Tuning",
    Findings of EACL 2026, code seonha01/rb-lora.
    """

    def stacks(server: Server, cohort: Cohort, start: Start, result: Adapter, path: str) -> LoRA:
        owned = owners(cohort, template.rank)
        at_scale = {path: _at_scale(result[path], start.gain[path])}
        mean = combine(at_scale, owner_shares(cohort.weight, owned, weights))
        old = {
            path: _at_scale(server.adapter[path], jnp.full(template.rank, template.server_scale))
        }
        return keep_unowned(mean, old, jnp.any(owned, axis=0))[path]

    return refactoring(template, stacks, sigma=sigma)


def _at_scale(pair: LoRA, gain: Array) -> LoRA:
    """The gain (``[R]``, or one that broadcasts over the leading axes) taken into `a`."""
    gain = gain.reshape((1,) * (pair.a.ndim - 1 - gain.ndim) + gain.shape)
    return LoRA(pair.a * gain[..., None, :], pair.b)


def _join(one: LoRA, other: LoRA) -> LoRA:
    """The factors of the sum of two products."""
    return LoRA(
        jnp.concatenate([one.a, other.a], axis=-1), jnp.concatenate([one.b, other.b], axis=-2)
    )
