"""Methods that average the clients' products and factor the mean again.

``M = sum_k p_k s_k a_k b_k`` is the product of two stacks; its leading singular triplets come from
them without forming ``M`` (`fedjax_lora.core.linalg.svd`). The server keeps `R` of them, ordered by
singular value, so the first `r` components are the best rank-`r` approximation (Eckart-Young).
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.layerwise import map_layers
from fedjax_lora.core.owned_product import sum_of_products
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.subspace import matmul
from fedjax_lora.core.types import Adapter, Array, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, shares
from fedjax_lora.methods.base import (
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    Mix,
    ServerState,
    Tree,
    if_any_present,
    per_client,
    plain_server,
    symmetric_traffic,
    truncated_start,
)

Sigma = Literal["a", "b", "both"]

LEAST_RANK = 64
"""Stored rank from which products of owned components are faster on a CPU (measured: 0.7 times as
fast at 16, 1.3 times at 64, 1.8 times at 256)."""


def weighted_stack(pair: LoRA, gain: Array, share: Array) -> LoRA:
    """``sum_k a_k diag(share_k * gain_k) b_k`` as one product of two stacks.

    Args:
      pair: ``[c, (L,) i, R]`` and ``[c, (L,) R, o]``.
      gain: ``[c, (L,) R]``.
      share: ``[c]`` or, a weight for each component, ``[c, R]``; what has weight 0 contributes
        exact zeros even if it is not finite.
    """
    share = share.reshape(share.shape[0], *(1,) * (pair.a.ndim - 1 - share.ndim), *share.shape[1:])
    weight = jnp.broadcast_to(share, (*pair.a.shape[:-2], pair.a.shape[-1]))  # [c, (L,) R]
    used = weight > 0
    a = jnp.where(used[..., None, :], (weight * gain)[..., None, :] * pair.a, 0.0)
    return linalg.stack(LoRA(a, jnp.where(used[..., :, None], pair.b, 0.0)))


def refactor(pair: LoRA, rank: int, scale: float, sigma: Sigma) -> LoRA:
    """The best rank-``rank`` factors with ``scale * a @ b`` equal to the product of the stacks.

    Args:
      pair: the stacks, ``[(L,) i, k]`` and ``[(L,) k, o]``.
      rank: components of the result.
      scale: what the adapter is multiplied by when it is used.
      sigma: the factor that carries the singular values; ``both`` takes their square roots.
    """
    u, s, vt = linalg.svd(pair, rank)
    return split(u, s / scale, vt, sigma)


def split(u: Array, s: Array, vt: Array, sigma: Sigma) -> LoRA:
    """Singular triplets as two factors, see `refactor`."""
    in_a, in_b = in_factors(s, sigma)
    return LoRA(u * in_a[..., None, :], vt * in_b[..., :, None])


def in_factors(size: Array, sigma: Sigma) -> tuple[Array, Array]:
    """What `a` and `b` are multiplied by, so that their product is multiplied by ``size``."""
    one, root = jnp.ones_like(size), jnp.sqrt(size)
    return {"a": (size, one), "b": (one, size), "both": (root, root)}[sigma]


@checked_options
def refactoring(
    spec: LoraSpec,
    weigh: Callable[[Cohort], Array],
    *,
    name: str,
    paper: str = "",
    sigma: Sigma,
    join: Callable[[LoRA, Array, Array], LoRA] = weighted_stack,
    keep: bool = False,
    late: tuple[Mix, ...] = (),
) -> Method:
    """A method whose new server holds the best rank-`R` factors of a product.

    Args:
      spec: the adapted layers.
      weigh: the weights of the clients' components, ``float32[c, R]``.
      name: of the method.
      paper: where it is described.
      sigma: see `refactor`.
      join: the clients' part of the product, from the arguments of `weighted_stack`.
      keep: components of weight 0 on all clients enter with the server's value.
      late: how late clients may be mixed, see `Method`.
    """
    layer = make_layer(spec, sigma=sigma, join=join, keep=keep)

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        share = weigh(cohort)
        new = {
            path: each_layer(
                layer, (*pair, start.gain[path]), share, per_client(server.adapter[path])
            )
            for path, pair in result.items()
        }
        adapter = if_any_present(cohort, only_adapted(spec, new), server.adapter)
        return AggregateResult(server._replace(adapter=adapter), clients, cohort.rank)

    return Method(
        name=name,
        paper=paper,
        spec=spec,
        init=plain_server,
        broadcast=lambda server, clients, cohort: rescaled_start(spec, server, cohort, sigma),
        aggregate=aggregate,
        traffic=symmetric_traffic(spec),
        late=late,
    )


def make_layer(
    spec: LoraSpec,
    *,
    sigma: Sigma,
    join: Callable[[LoRA, Array, Array], LoRA] = weighted_stack,
    keep: bool = False,
) -> Callable[..., LoRA]:
    """Make the new factors of one layer, ``(a, b, gain, share, old_a, old_b) -> LoRA``.

    Args:
      spec: the adapted layers.
      sigma: see `refactor`.
      join: see `refactoring`, as the following one.
      keep: components of weight 0 on all clients enter with the server's value.
    """

    def kept_part(share: Array, old_a: Array) -> Array:
        kept = jnp.where(jnp.all(share == 0, axis=0), spec.server_scale, 0.0)  # [R]
        return old_a[0] * kept[None]

    def of_stacks(a: Array, b: Array, gain: Array, share: Array, *old: Array) -> LoRA:
        product = join(LoRA(a, b), gain, share)
        if keep:
            product = LoRA(
                jnp.concatenate([product.a, kept_part(share, old[0])], axis=1),
                jnp.concatenate([product.b, old[1][0]], axis=0),
            )
        return refactor(product, spec.rank, spec.server_scale, sigma)

    def of_owned(a: Array, b: Array, gain: Array, share: Array, *old: Array) -> LoRA:
        product = sum_of_products(a, b, jnp.where(share > 0, share * gain, 0.0))
        if keep:
            product = product + matmul(kept_part(share, old[0]), old[1][0])
        u, s, vt = linalg.svd_of_matrix(product, spec.rank)
        return split(u, s / spec.server_scale, vt, sigma)

    def layer(*given: Array) -> LoRA:
        if join is not weighted_stack or not multiplies_owned(*given[:2]):
            return of_stacks(*given)
        return jax.lax.platform_dependent(*given, cpu=of_owned, default=of_stacks)

    return layer


def multiplies_owned(a: Array, b: Array) -> bool:
    """Whether a CPU multiplies the components that clients own instead of two stacks.

    That is where the product is multiplied out anyway, the rank is large, and the device has all
    clients.

    Args:
      a: of one layer, ``[c, i, R]``.
      b: ``[c, R, o]``.
    """
    count, inputs, rank = a.shape
    kinds = jax.sharding.get_abstract_mesh().axis_types
    has_all = all(kind == AxisType.Manual for kind in kinds)
    return has_all and rank >= LEAST_RANK and count * rank >= min(inputs, b.shape[2])


def each_layer(
    layer: Callable[..., Tree], clients: tuple[Array, ...], share: Array, server: tuple[Array, ...]
) -> Tree:
    """``layer(*clients, share, *server)``, of one layer after another where they are stacked.

    Only one layer's stacks are ever in memory.

    Args:
      layer: of arrays without a layer axis.
      clients: a layer's arrays, ``[c, (L,) ...]``.
      share: ``[c, R]``, for all layers.
      server: a layer's arrays with an axis of one in front, ``[1, (L,) ...]``.
    """
    if clients[0].ndim == 3:
        return layer(*clients, share, *server)
    count = clients[0].shape[1]
    everywhere = jnp.broadcast_to(share[:, None], (share.shape[0], count, share.shape[1]))
    return map_layers(layer, *clients, everywhere, *server, axis=1)


def rescaled_start(spec: LoraSpec, server: ServerState, cohort: Cohort, sigma: Sigma) -> ClientInit:
    """The first `r` components, such that each client's product is the server's.

    A client that reads its adapter at another scale gets factors of the same product: the ratio of
    the scales goes where the singular values are, so that a factor of singular vectors stays one.
    """
    start = truncated_start(spec, server, cohort)
    ratio = spec.server_scale / cohort.scale
    in_a, in_b = in_factors(ratio, sigma)
    adapter = {
        path: LoRA(pair.a * trees.expand(in_a, pair.a), pair.b * trees.expand(in_b, pair.b))
        for path, pair in start.adapter.items()
    }
    return start._replace(adapter=adapter)


def only_adapted(spec: LoraSpec, adapter: Adapter) -> Adapter:
    """Zeros at the layers left out: singular vectors of a zero product are not zero."""
    mask = lora.factor_mask(lora.spread(spec, jnp.ones(spec.rank, bool)))
    return lora.keep(adapter, {path: mask[path] for path in adapter})


def product_mean(
    spec: LoraSpec, *, name: str, paper: str = "", weights: Weights, sigma: Sigma
) -> Method:
    """The common operator: exact mean of products, then the best rank-`R` factors."""

    def weigh(cohort: Cohort) -> Array:
        share = shares(cohort.weight, weights)
        return jnp.broadcast_to(share[:, None], (share.shape[0], spec.rank))

    late = ("models",) if weights == "examples" else ()
    return refactoring(spec, weigh, name=name, paper=paper, sigma=sigma, late=late)


@checked_options
def hlora(spec: LoraSpec, *, weights: Weights = "examples", sigma: Sigma = "a") -> Method:
    """HLoRA: mean of the products, SVD, each client gets its top `r` components.

    ``M = sum_k (n_k / n) s_k a_k b_k = U S V^T``; in the paper's notation ``B' = U_r``,
    ``A' = S_r V_r^T``. The paper's `A` is our ``a`` transposed, hence ``sigma="a"``. With one rank
    for all it is the paper's homogeneous variant; its naive baseline, which averages the factors,
    is ``zero_padding``.

    Args:
      spec: the adapted layers.
      weights: of the mean.
      sigma: the factor that carries the singular values. Two independent readers of the paper put
        them into `A`; its literal text could not be read. The product is the same either way, the
        optimisation after it is not.

    Liu et al., "HLoRA", arXiv 2503.00813.
    """
    return product_mean(spec, name="hlora", paper="arXiv 2503.00813", weights=weights, sigma=sigma)


@checked_options
def flexlora(spec: LoraSpec, *, weights: Weights = "examples", sigma: Sigma = "b") -> Method:
    """FlexLoRA: mean of the scaled products, SVD, ``A = V^T[:r]``, ``B = U[:, :r] S[:r] / scale``.

    The same operator as HLoRA with the singular values in `B` (our ``b`` transposed).

    Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
    Resources", arXiv 2402.11505.
    """
    return product_mean(
        spec, name="flexlora", paper="arXiv 2402.11505", weights=weights, sigma=sigma
    )
