"""HetLoRA: zero-padded factors weighted by their norm; clients that give up rank."""

import dataclasses
import fractions
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Empty, averaging, owners, shares
from fedjax_lora.methods.base import AggregateResult, ClientInit, Cohort, Method, ServerState

Norm = Literal["client", "layer"]


@checked_options
def hetlora(
    spec: LoraSpec,
    *,
    norm: Norm = "client",
    gamma: float = 0.99,
    penalty: float = 0.01,
    min_rank: int = 1,
    empty: Empty = "keep",
) -> Method:
    """HetLoRA: zero-padded factors weighted by ``||delta||_F``; ranks prune themselves.

    ``w_k = ||delta_k||_F / sum_k ||delta_k||_F`` with ``delta_k`` the client's adapter after
    training at its own scale (its value, not its change); if all are zero, equal weights.

    The tail of a client of rank `r` is its components from ``floor(gamma r)`` on (of `gamma` as a
    decimal fraction: 0.7 of 90 is 63, which floating point misses); its size is
    ``t = sum_sites ||a_tail||_F ||b_tail||_F``. Training adds ``penalty * t`` to the loss. If `t`
    has shrunk, the client cuts the tail off before it sends, and its rank is
    ``max(min_rank, floor(gamma r))`` from then on.

    Args:
      spec: the adapted layers.
      norm: one weight per client from the norm over all layers together, or one per layer. The
        paper does not say; the default keeps the layers of one client together.
      gamma: where the tail begins; 0.99 is the best that the paper reports, 1 never prunes.
      penalty: weight of the tail in the loss. The paper's value is not known; 0.01 is that of a
        public re-implementation.
      min_rank: no client prunes below it. The paper's lowest rank is 5.
      empty: what becomes of components that nobody in the cohort owns (any more), as in
        `zero_padding`; re-implementations that pad to the highest rank make them zero.

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
    rule = _HetLora(spec, norm, gamma, min_rank)
    padded_mean = averaging(
        spec, rule.weights, name="hetlora", paper="arXiv 2401.06432", empty=empty
    )

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        rank = rule.trim(cohort.rank, start.adapter, result)
        pruned = cohort._replace(rank=jnp.where(cohort.weight > 0, rank, cohort.rank))
        kept = lora.factor_mask(lora.spread(spec, lora.prefix_mask(pruned.rank, spec.rank)))
        sent = lora.keep(result, kept)
        return padded_mean.aggregate(server, clients, pruned, start, sent)

    return dataclasses.replace(
        padded_mean,
        aggregate=aggregate,
        trim=rule.trim,
        penalty=lambda adapter, rank: penalty * rule.tail_size(adapter, rank),
    )


@dataclasses.dataclass(frozen=True)
class _HetLora:
    """The tail, the pruning and the weights of `hetlora`."""

    spec: LoraSpec
    norm: Norm
    gamma: float
    min_rank: int

    def _cut(self, rank: Array) -> Array:
        """Where the tail of an adapter of this rank begins, ``floor(gamma * rank)``: ``int32``."""
        gamma = fractions.Fraction(str(self.gamma))
        cut = [math.floor(gamma * r) for r in range(self.spec.rank + 1)]
        return jnp.asarray(cut, jnp.int32)[rank]

    def tail_size(self, adapter: Adapter, rank: Array) -> Array:
        """``[...]`` for an adapter ``[..., (L,) i, R]`` and ranks ``[...]``."""
        tail = ~lora.prefix_mask(self._cut(rank), self.spec.rank)  # [..., R]
        only = lora.keep(adapter, lora.factor_mask(lora.spread(self.spec, tail)))
        total = jnp.zeros(rank.shape)
        for pair in only.values():
            a, b = (_root(jnp.sum(jnp.square(x), axis=(-2, -1))) for x in pair)  # [..., (L)]
            total = total + jnp.sum((a * b).reshape(*rank.shape, -1), axis=-1)
        return total

    def trim(self, rank: Array, before: Adapter, after: Adapter) -> Array:
        """The ranks after training, which may have shrunk the tails: ``int32[c]``.

        The same for an adapter that has been trimmed: its tail is smaller still.
        """
        shrunk = self.tail_size(after, rank) < self.tail_size(before, rank)
        pruned = jnp.minimum(rank, jnp.maximum(self.min_rank, self._cut(rank)))
        return jnp.where(shrunk, pruned, rank)

    def weights(self, cohort: Cohort, start: ClientInit, result: Adapter) -> Mapping[str, Array]:
        """The weights of the clients' components by the norm of their products, per path."""
        squares = {
            path: linalg.square_norm(LoRA(pair.a * start.gain[path][..., None, :], pair.b))
            for path, pair in result.items()
        }
        if self.norm == "client":
            each = [jnp.sum(x.reshape(x.shape[0], -1), axis=1) for x in squares.values()]
            total = jnp.sum(jnp.stack(each), axis=0)
            squares = {path: trees.expand(total, x) for path, x in squares.items()}
        owned = lora.spread(self.spec, owners(cohort, self.spec.rank))
        return {
            path: jnp.where(owned[path], _norm_shares(cohort, x)[..., None], 0.0)
            for path, x in squares.items()
        }


def _norm_shares(cohort: Cohort, square: Array) -> Array:
    """Norms over their sum, from squares ``[c, (L or 1)]``; equal if all of them are zero."""
    size = jnp.where(trees.expand(cohort.weight > 0, square), jnp.sqrt(square), 0.0)
    equal = trees.expand(shares(cohort.weight, "uniform"), size)
    equal = jnp.broadcast_to(equal, size.shape)
    return trees.safe_divide(size, jnp.sum(size, axis=0, keepdims=True), equal)


def _root(x: Array) -> Array:
    """The square root with derivative 0 at 0, where a fresh adapter's `b` is."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)
