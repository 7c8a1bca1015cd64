"""Methods that average the clients' products and factor the mean again.

``M = sum_k p_k s_k a_k b_k`` is the product of two stacks; its leading singular triplets come from
them without forming ``M`` (`fedjax_lora.lowrank.svd`). The server keeps `R` of them, ordered by
singular value, so the first `r` components are the best rank-`r` approximation (Eckart-Young).
"""

from typing import Any, Literal

import jax.numpy as jnp

from fedjax_lora import adapters, lowrank
from fedjax_lora.adapters import Template
from fedjax_lora.layerwise import over_layers
from fedjax_lora.methods.averaging import Weights, shares
from fedjax_lora.methods.base import (
    Cohort,
    Method,
    Outcome,
    Server,
    Start,
    plain_server,
    symmetric_traffic,
    truncated_start,
)
from fedjax_lora.types import Adapter, Array, LoRA

Sigma = Literal["a", "b", "both"]


def weighted_stack(pair: LoRA, gain: Array, share: Array) -> LoRA:
    """``sum_k share_k * a_k diag(gain_k) b_k`` as one product of two stacks.

    Args:
      pair: ``[c, (L,) i, R]`` and ``[c, (L,) R, o]``.
      gain: ``[c, (L,) R]``.
      share: ``[c]``; absent clients (0) contribute exact zeros even if they are not finite.
    """
    w = share.reshape(-1, *(1,) * (pair.a.ndim - 1))
    a = jnp.where(w > 0, w * gain[..., None, :] * pair.a, 0.0)
    return lowrank.stack(LoRA(a, jnp.where(w > 0, pair.b, 0.0)))


def refactor(pair: LoRA, rank: int, scale: float, sigma: Sigma) -> LoRA:
    """The best rank-``rank`` factors with ``scale * a @ b`` equal to the product of the stacks.

    Args:
      pair: the stacks, ``[(L,) i, k]`` and ``[(L,) k, o]``.
      rank: components wanted.
      scale: what the adapter is multiplied by when it is used.
      sigma: the factor that carries the singular values; ``both`` takes their square roots.
    """
    u, s, vt = lowrank.svd(pair, rank)
    s = s / scale
    in_a = {"a": s, "b": jnp.ones_like(s), "both": jnp.sqrt(s)}[sigma]
    in_b = {"a": jnp.ones_like(s), "b": s, "both": jnp.sqrt(s)}[sigma]
    return LoRA(u * in_a[..., None, :], vt * in_b[..., :, None])


def mean_factors(
    pair: LoRA, gain: Array, share: Array, rank: int, scale: float, sigma: Sigma
) -> LoRA:
    """`refactor` of the `weighted_stack`, which is only ever there for one layer at a time.

    Args:
      pair: ``[c, (L,) i, R]`` and ``[c, (L,) R, o]``.
      gain: ``[c, (L,) R]``.
      share: ``[c]``.
      rank: components wanted.
      scale: see `refactor`.
      sigma: see `refactor`.
    """

    def layer(a: Array, b: Array, gain: Array, share: Array) -> LoRA:
        return refactor(weighted_stack(LoRA(a, b), gain, share), rank, scale, sigma)

    if pair.a.ndim == 3:
        return layer(*pair, gain, share)
    each = jnp.broadcast_to(share[:, None], gain.shape[:2])  # [c, L]
    return over_layers(layer, *pair, gain, each, axis=1)


def product_mean(template: Template, *, weights: Weights, sigma: Sigma) -> Method:
    """The common operator: exact mean of products, then the best rank-`R` factors."""

    def broadcast(server: Server, clients: Any, cohort: Cohort) -> Start:
        start = truncated_start(template, server, cohort)
        # A client that reads its adapter at another scale gets factors of the same product.
        ratio = template.server_scale / cohort.scale
        adapter = {
            path: LoRA(pair.a, pair.b * ratio.reshape(-1, *(1,) * (pair.b.ndim - 1)))
            for path, pair in start.adapter.items()
        }
        return start._replace(adapter=adapter)

    def aggregate(
        server: Server, clients: Any, cohort: Cohort, start: Start, result: Adapter
    ) -> Outcome:
        share = shares(cohort.weight, weights)
        somebody = jnp.any(cohort.weight > 0)

        def site(path: str) -> LoRA:
            new = mean_factors(
                result[path], start.gain[path], share, template.rank, template.server_scale, sigma
            )
            old = server.adapter[path]
            return LoRA(jnp.where(somebody, new.a, old.a), jnp.where(somebody, new.b, old.b))

        # Singular vectors of a zero product are not zero: layers left out have to stay so.
        everything = adapters.spread(template, jnp.ones(template.rank, bool))
        adapter = adapters.keep(
            {path: site(path) for path in result}, adapters.factor_mask(everything)
        )
        return Outcome(server._replace(adapter=adapter), clients, cohort.rank)

    return Method(
        init=plain_server,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=symmetric_traffic(template),
    )


def hlora(template: Template, *, weights: Weights = "examples", sigma: Sigma = "a") -> Method:
    """HLoRA: mean of the products, SVD, each client gets its top `r` components.

    ``M = sum_k (n_k / n) s_k a_k b_k = U S V^T``; in the paper's notation ``B' = U_r``,
    ``A' = S_r V_r^T``. The paper's `A` is our ``a`` transposed, hence ``sigma="a"``.

    Args:
      template: the sites.
      weights: of the mean.
      sigma: the factor that carries the singular values. Two independent readers of the paper put
        them into `A`; its literal text could not be read. The product is the same either way, the
        optimisation after it is not.

    Liu et al., "HLoRA", arXiv 2503.00813.
    """
    return product_mean(template, weights=weights, sigma=sigma)


def flexlora(template: Template, *, weights: Weights = "examples", sigma: Sigma = "b") -> Method:
    """FlexLoRA: mean of the scaled products, SVD, ``A = V^T[:r]``, ``B = U[:, :r] S[:r] / scale``.

    The same operator as HLoRA with the singular values in `B` (our ``b`` transposed).

    Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
    Resources", arXiv 2402.11505.
    """
    return product_mean(template, weights=weights, sigma=sigma)
