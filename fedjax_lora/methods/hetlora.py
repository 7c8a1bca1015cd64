"""HetLoRA: zero-padded factors weighted by their norm; clients that give up rank."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Adapter, Array, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import averaging, owners, shares
from fedjax_lora.methods.base import AggregateResult, ClientInit, Cohort, Method, ServerState


def hetlora(
    spec: LoraSpec,
    *,
    norm: Literal["client", "layer"] = "client",
    gamma: float = 0.99,
    penalty: float = 0.01,
    min_rank: int = 1,
) -> Method:
    """HetLoRA: zero-padded factors weighted by ``||delta||_F``; ranks prune themselves.

    ``w_k = ||delta_k||_F / sum_k ||delta_k||_F`` with ``delta_k`` the client's adapter after
    training at its own scale (its value, not its change); if all are zero, equal weights.

    The tail of a client of rank `r` is its components from ``floor(gamma r)`` on; its size is
    ``t = sum_sites ||a_tail||_F ||b_tail||_F``. Training adds ``penalty * t`` to the loss. If `t`
    has shrunk, the client cuts the tail off before it sends, and its rank is
    ``max(min_rank, floor(gamma r))`` from then on.

    Args:
      spec: the sites.
      norm: one weight per client from the norm over all layers together, or one per layer. The
        paper does not say; the default keeps the layers of one client together.
      gamma: where the tail begins; 0.99 is the best that the paper reports, 1 never prunes.
      penalty: weight of the tail in the loss. The paper's value is not known; 0.01 is that of a
        public re-implementation.
      min_rank: nobody prunes below it. The paper's lowest rank is 5.

    Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models",
    arXiv 2401.06432.

    Raises:
      InputError: gamma outside (0, 1], a negative penalty, min_rank below 1.
    """
    if not (0 < gamma <= 1 and penalty >= 0 and min_rank >= 1):
        raise InputError(
            "Method 'hetlora' needs gamma in (0, 1], penalty of at least 0 and min_rank of at "
            f"least 1, got gamma={gamma}, penalty={penalty}, min_rank={min_rank}."
        )
    cut = np.floor(gamma * np.arange(spec.rank + 1)).astype(np.int32)  # by rank

    def tail_size(adapter: Adapter, rank: Array) -> Array:
        """``[...]`` for an adapter ``[..., (L,) i, R]`` and ranks ``[...]``."""
        tail = ~lora.prefix_mask(jnp.asarray(cut)[rank], spec.rank)  # [..., R]
        only = lora.keep(adapter, lora.factor_mask(lora.spread(spec, tail)))
        total = jnp.zeros(rank.shape)
        for pair in only.values():
            a, b = (_root(jnp.sum(jnp.square(x), axis=(-2, -1))) for x in pair)  # [..., (L)]
            total = total + jnp.sum((a * b).reshape(*rank.shape, -1), axis=-1)
        return total

    def weigh(cohort: Cohort, start: ClientInit, result: Adapter) -> Mapping[str, Array]:
        present = cohort.weight > 0
        squares = {
            path: linalg.square_norm(LoRA(pair.a * start.gain[path][..., None, :], pair.b))
            for path, pair in result.items()
        }
        if norm == "client":
            each = [jnp.sum(x.reshape(x.shape[0], -1), axis=1) for x in squares.values()]
            total = jnp.sum(jnp.stack(each), axis=0)
            squares = {path: trees.expand(total, x) for path, x in squares.items()}

        def weights(square: Array) -> Array:  # [c, (L or 1)]
            size = jnp.where(trees.expand(present, square), jnp.sqrt(square), 0.0)
            equal = jnp.broadcast_to(
                trees.expand(shares(cohort.weight, "uniform"), size), size.shape
            )
            return trees.safe_divide(size, jnp.sum(size, axis=0, keepdims=True), equal)

        owned = lora.spread(spec, owners(cohort, spec.rank))
        return {p: jnp.where(owned[p], weights(x)[..., None], 0.0) for p, x in squares.items()}

    padded_mean = averaging(spec, weigh, name="hetlora", paper="arXiv 2401.06432")

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        shrunk = tail_size(result, cohort.rank) < tail_size(start.adapter, cohort.rank)
        pruned = jnp.minimum(cohort.rank, jnp.maximum(min_rank, jnp.asarray(cut)[cohort.rank]))
        rank = jnp.where(shrunk & (cohort.weight > 0), pruned, cohort.rank)
        kept = lora.factor_mask(lora.spread(spec, lora.prefix_mask(rank, spec.rank)))
        sent = lora.keep(result, kept)
        return padded_mean.aggregate(server, clients, cohort._replace(rank=rank), start, sent)

    return dataclasses.replace(
        padded_mean,
        aggregate=aggregate,
        penalty=lambda adapter, rank: penalty * tail_size(adapter, rank),
    )


def _root(x: Array) -> Array:
    """The square root with derivative 0 at 0, where a fresh adapter's `b` is."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)
