"""LoRA-A2: one factor per round, and each client sends the components that moved most."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, Gain, LoRA, Rates
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, combine, shares
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    INDEX_BYTES,
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    ServerState,
    Traffic,
    plain_server,
    whole_start,
)
from fedjax_lora.methods.fed_plora import module_norms


@checked_options
def lora_a2(spec: LoraSpec, *, b_rate: float = 5.0, weights: Weights = "examples") -> Method:
    """LoRA-A2: alternating factors, and of all components the ones that move most.

    All clients hold all `R` components. In even rounds `b` is trained and `a` is fixed, in odd
    rounds the reverse. A client of rank `r` first trains everything as a probe; component `j` of
    a layer scores ``||a_j|| ||change of b_j||`` (in the other phase with the roles exchanged); the
    ``r M`` highest over all `M` adapted matrices together are then trained from the start again and
    sent. The server adds ``sum_k p_k change_k``: weights are not renormalised over the clients that
    chose a component. No initialisation noise, and in the fixed factor no aggregation noise.

    Args:
      spec: the adapted layers.
      b_rate: the learning rate of `b` over that of `a`; 5 in the paper.
      weights: of the mean.

    The probe takes as long as the local training itself (one epoch in the paper, whose local
    training has five). Bytes are those of components of average size where adapted layers differ;
    down, of both factors: a client that was away has neither.

    Koo et al., "Towards Robust and Efficient Federated Low-Rank Adaptation with Heterogeneous
    Clients", arXiv 2410.22815.

    Raises:
      InputError: b_rate not above 0.
    """
    if not b_rate > 0:
        raise InputError(f"Method 'lora_a2' needs a b_rate above 0, got {b_rate}.")

    rule = _LoraA2(spec, weights)
    return Method(
        name="lora_a2",
        paper="arXiv 2410.22815",
        spec=spec,
        init=plain_server,
        broadcast=rule.broadcast,
        aggregate=rule.aggregate,
        traffic=rule.traffic,
        select=rule.select,
        rates=Rates(b=b_rate),
        averages=True,
    )


@dataclasses.dataclass(frozen=True)
class _LoraA2:
    """The functions of `lora_a2`."""

    spec: LoraSpec
    weights: Weights

    def broadcast(self, server: ServerState, clients: Any, cohort: Cohort) -> ClientInit:
        """All components for a probe of the round's factor."""
        components = jnp.ones((cohort.rank.shape[0], self.spec.rank), bool)
        trained = _trainable(cohort.round, lora.spread(self.spec, components))
        return whole_start(self.spec, server, cohort, trained)

    def select(self, round: Array, rank: Array, start: ClientInit, probed: Adapter) -> ClientInit:
        """The components that the probe has moved most, from the start again."""
        change = jax.tree.map(jnp.subtract, probed, start.adapter)
        b = _trains_b(round)
        scores = {
            path: module_norms(
                LoRA(
                    jnp.where(b, pair.a, change[path].a),
                    jnp.where(b, change[path].b, pair.b),
                )
            )
            for path, pair in start.adapter.items()
        }
        chosen = highest(self.spec, scores, rank * self.spec.matrices)
        return start._replace(trainable=_trainable(round, chosen))

    def aggregate(
        self,
        server: ServerState,
        clients: Any,
        cohort: Cohort,
        start: ClientInit,
        result: Adapter,
    ) -> AggregateResult:
        """The server's adapter plus the weighted sum of the clients' changes."""
        change = jax.tree.map(jnp.subtract, result, start.adapter)  # zero where not chosen
        share = jnp.broadcast_to(
            shares(cohort.weight, self.weights)[:, None], (cohort.rank.shape[0], self.spec.rank)
        )
        adapter = jax.tree.map(jnp.add, server.adapter, combine(change, share))
        return AggregateResult(server._replace(adapter=adapter), clients, cohort.rank)

    def traffic(self, server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        """Up the chosen components of one factor with their indices, down all of both."""
        rank = rank.astype(np.int64)
        sizes = self.spec.factor_sizes
        one = sizes.b if _trains_b(round) else sizes.a
        index = rank * self.spec.matrices * INDEX_BYTES
        up = rank * one * FLOAT_BYTES + index
        down = np.full_like(up, self.spec.rank * self.spec.component_size * FLOAT_BYTES)
        return Traffic(up=up, down=down, exact=index, factors=1)


def _trains_b(round: Any) -> Any:
    return round % 2 == 0


def _trainable(round: Array, components: Gain) -> Adapter:
    """The chosen components of the factor that the round trains."""
    b = _trains_b(round)
    return lora.factor_mask(components, a=~b, b=b)


def highest(spec: LoraSpec, scores: Gain, count: Array) -> Gain:
    """The components with the highest scores over all adapted matrices together.

    Args:
      spec: the adapted layers.
      scores: ``[c, (L,) R]`` per path.
      count: how many each client takes, ``int32[c]``; of equal scores the first.

    Returns:
      ``bool[c, (L,) R]`` per path.
    """
    adapted = lora.spread(spec, jnp.ones(spec.rank, bool))
    flat = jnp.concatenate(
        [
            jnp.where(adapted[path][None], x, -jnp.inf).reshape(x.shape[0], -1)
            for path, x in scores.items()
        ],
        axis=1,
    )
    order = jnp.argsort(jnp.argsort(-flat, axis=1), axis=1)
    taken = order < count[:, None]
    masks, offset = {}, 0
    for path, x in scores.items():
        size = x[0].size
        masks[path] = taken[:, offset : offset + size].reshape(x.shape)
        offset += size
    return lora.spread(spec, masks)
