"""FLoRIST: the SVD of the stack keeps as many components as the energy asks for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import linalg
from fedjax_lora.core.errors import InputError
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
    plain_server,
)
from fedjax_lora.methods.svd import (
    Sigma,
    each_layer,
    if_anybody,
    only_adapted,
    rescaled_start,
    split,
    weighted_stack,
)


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
    are not shrunk. Everybody gets this one adapter, cut to or filled up to its own rank.

    The paper fills up with zeros. A component whose two factors are both zero has no gradient and
    would never learn again, so here its `a` is drawn afresh and only its `b` is zero, which leaves
    the function as it is.

    Args:
      spec: the sites.
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

    def init(adapter: Adapter, kernels: Kernels) -> ServerState:
        # Components in use, per layer: all of a fresh adapter.
        used = {s.path: jnp.full(s.stack, spec.rank, jnp.int32) for s in spec.targets}
        return plain_server(adapter, kernels)._replace(state=used)

    def layer(a: Array, b: Array, gain: Array, share: Array, fresh: Array) -> tuple[LoRA, Array]:
        stacks = weighted_stack(LoRA(a, b), gain, share)
        widest = min(stacks.a.shape[-2], *stacks.b.shape[-2:])
        u, s, vt = linalg.svd(stacks, max(widest, spec.rank))
        used = jnp.minimum(components_kept(s, threshold), spec.rank)
        u, s, vt = (x[..., : spec.rank] for x in (u, s, vt.mT))
        new = split(u, s / spec.server_scale, vt.mT, sigma)
        mask = lora.prefix_mask(used, spec.rank)
        cut = LoRA(jnp.where(mask[None], new.a, fresh[0]), jnp.where(mask[:, None], new.b, 0.0))
        return cut, used

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        share = shares(cohort.weight, weights)
        fresh = lora.init(spec, jax.random.fold_in(cohort.key, 0))
        share = jnp.broadcast_to(share[:, None], (share.shape[0], spec.rank))
        done = {
            path: each_layer(layer, (*pair, start.gain[path]), share, (fresh[path].a[None],))
            for path, pair in result.items()
        }
        adapter = only_adapted(spec, {path: pair for path, (pair, _) in done.items()})
        used = {path: number for path, (_, number) in done.items()}
        new = server._replace(adapter=adapter, state=used)
        return AggregateResult(if_anybody(cohort, new, server), clients, cohort.rank)

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        rank = rank.astype(np.int64)
        down = np.zeros_like(rank)
        for target in spec.targets:
            used = np.atleast_1d(np.asarray(server.state[target.path]))
            for number in used[list(target.layers) if target.layers else slice(None)]:
                down += np.minimum(rank, number) * (target.inputs + target.outputs) * FLOAT_BYTES
        return Traffic(up=rank * spec.component_size * FLOAT_BYTES, down=down)

    return Method(
        name="florist",
        paper="arXiv 2506.09199",
        spec=spec,
        init=init,
        broadcast=lambda server, clients, cohort: rescaled_start(spec, server, cohort),
        aggregate=aggregate,
        traffic=traffic,
    )


def components_kept(s: Array, threshold: float) -> Array:
    """The smallest number of leading values that keep the share of the energy: ``int32[...]``.

    Args:
      s: singular values, descending, ``[..., k]``.
      threshold: share of ``sum s^2``.
    """
    energy = jnp.square(s)
    beyond = jnp.flip(jnp.cumsum(jnp.flip(energy, -1), -1), -1)  # from component j on
    total = beyond[..., :1]
    return jnp.sum(beyond > (1 - threshold) * total, axis=-1).astype(jnp.int32)
