"""FLoRIST: the SVD of the stack keeps as many components as the energy asks for."""

import dataclasses
from typing import Any

import jax
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
    plain_server,
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
def florist(
    spec: LoraSpec,
    *,
    threshold: float = 0.9,
    weights: Weights = "examples",
    sigma: Sigma = "b",
) -> Method:
    """FLoRIST: mean of the products cut at the smallest rank that keeps a share of its energy.

    ``M = sum_k p_k s_k a_k b_k = U S V^T``; in each layer the `p` leading components stay, `p` the
    smallest with ``sum_{j < p} S_j^2 >= threshold * sum_j S_j^2``, at most `R`; singular values
    are not shrunk. All clients get this one adapter, cut or filled up to their own
    rank.

    The paper fills up with zeros. A component whose two factors are both zero has no gradient and
    would never learn again, so here its `a` is drawn afresh and only its `b` is zero, which leaves
    the function as it is.

    Args:
      spec: the adapted layers.
      threshold: share of the energy to keep; with 1 the product is FlexLoRA's.
      weights: of the mean.
      sigma: the factor that carries the singular values (not known from the paper; as FlexLoRA).

    "FLoRIST: Singular Value Thresholding for Efficient and Accurate Federated Fine-Tuning of Large
    Language Models", arXiv 2506.09199.

    Raises:
      InputError: threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise InputError(f"Method 'florist' needs a threshold in (0, 1], got {threshold}.")

    rule = _Florist(spec, threshold, weights, sigma)
    return Method(
        name="florist",
        paper="arXiv 2506.09199",
        spec=spec,
        init=rule.init,
        broadcast=lambda server, clients, cohort: rescaled_start(spec, server, cohort, sigma),
        aggregate=rule.aggregate,
        traffic=rule.traffic,
    )


@dataclasses.dataclass(frozen=True)
class _Florist:
    """The functions of `florist`; the server's state are the ranks in use, ``int32[(L)]``."""

    spec: LoraSpec
    threshold: float
    weights: Weights
    sigma: Sigma

    def init(self, adapter: Adapter, kernels: Kernels) -> ServerState:
        """All components of the first adapter are in use."""
        used = {s.path: jnp.full(s.stack, self.spec.rank, jnp.int32) for s in self.spec.targets}
        return plain_server(adapter, kernels)._replace(state=used)

    def aggregate(
        self,
        server: ServerState,
        clients: Any,
        cohort: Cohort,
        start: ClientInit,
        result: Adapter,
    ) -> AggregateResult:
        """The leading components of the mean product, filled up with fresh ones."""
        share = shares(cohort.weight, self.weights)
        fresh = lora.init(self.spec, jax.random.fold_in(cohort.key, 0))
        share = jnp.broadcast_to(share[:, None], (share.shape[0], self.spec.rank))
        layers = {
            path: each_layer(self._layer, (*pair, start.gain[path]), share, (fresh[path].a[None],))
            for path, pair in result.items()
        }
        adapter = only_adapted(self.spec, {path: pair for path, (pair, _) in layers.items()})
        used = {path: number for path, (_, number) in layers.items()}
        new = server._replace(adapter=adapter, state=used)
        return AggregateResult(if_any_present(cohort, new, server), clients, cohort.rank)

    def _layer(
        self, a: Array, b: Array, gain: Array, share: Array, fresh: Array
    ) -> tuple[LoRA, Array]:
        """One layer's factors, and how many of their components carry the energy."""
        stacks = weighted_stack(LoRA(a, b), gain, share)
        u, s, vt = linalg.svd(stacks, self.spec.rank)
        used = components_kept(s, self.threshold, beyond=self._missed(stacks, u * s[None], vt))
        new = split(u, s / self.spec.server_scale, vt, self.sigma)
        mask = lora.prefix_mask(used, self.spec.rank)
        cut = LoRA(jnp.where(mask[None], new.a, fresh[0]), jnp.where(mask[:, None], new.b, 0.0))
        return cut, used

    def _missed(self, stacks: LoRA, a: Array, b: Array) -> Array:
        """The energy of the product that is not in its `R` leading triplets ``a @ b``."""
        if self.spec.rank >= min(stacks.a.shape[-2], *stacks.b.shape[-2:]):
            return jnp.zeros(())
        rest = LoRA(jnp.concatenate([stacks.a, -a], -1), jnp.concatenate([stacks.b, b], -2))
        return jnp.square(linalg.norm(rest))

    def traffic(self, server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        """Up a client's own components, down those of them that are in use."""
        rank = rank.astype(np.int64)
        down = np.zeros_like(rank)
        for target in self.spec.targets:
            used = np.atleast_1d(np.asarray(server.state[target.path]))
            for number in used[list(target.layers) if target.layers else slice(None)]:
                down += np.minimum(rank, number) * (target.inputs + target.outputs) * FLOAT_BYTES
        return Traffic(up=rank * self.spec.component_size * FLOAT_BYTES, down=down)


def components_kept(s: Array, threshold: float, *, beyond: Array | float = 0.0) -> Array:
    """The smallest number of leading values that keep the share of the energy: ``int32[...]``.

    Args:
      s: the first singular values, descending, ``[..., k]``; not more than `k` are kept.
      threshold: share of ``sum s^2``.
      beyond: ``sum s^2`` of all further values, ``[...]``.
    """
    rest = jnp.flip(jnp.cumsum(jnp.flip(jnp.square(s), -1), -1), -1)  # from component j on
    rest = rest + jnp.asarray(beyond)[..., None]
    return jnp.sum(rest > (1 - threshold) * rest[..., :1], axis=-1).astype(jnp.int32)
