"""Methods that average factors and then correct the average by what it misses of the products.

``sum_k p_k s a_k b_k - s a b = sum_k p_k s a_k (b_k - b)`` for the means `a` and `b`. The right
side is a product of two stacks, and exact also where the two terms on the left nearly cancel.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_lora.core import linalg
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, combine, keep_unowned, owners, shares
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    ServerState,
    Traffic,
    need_equal_ranks,
    plain_server,
    symmetric_traffic,
    truncated_start,
    with_added,
)
from fedjax_lora.methods.svd import weighted_stack


def _means(
    spec: LoraSpec, cohort: Cohort, result: Adapter, weights: Weights
) -> tuple[Adapter, Array]:
    """The mean factors, zero beyond the clients' rank, and the weights ``[c]``."""
    share = shares(cohort.weight, weights)
    own = owners(cohort, spec.rank)
    return combine(result, jnp.where(own, share[:, None], 0.0)), share


def _residual(pair: LoRA, mean: LoRA, gain: Array, share: Array) -> LoRA:
    """The mean product minus the product of the means, as two stacks."""
    return weighted_stack(LoRA(pair.a, pair.b - mean.b[None]), gain, share)


@checked_options
def fedex_lora(spec: LoraSpec, *, residual_rank: int = 0, weights: Weights = "examples") -> Method:
    """FedEx-LoRA: averaged factors, and what they miss added to the base.

    ``a = sum_k p_k a_k``, ``b = sum_k p_k b_k``, ``W <- W + sum_k p_k s a_k b_k - s a b``: exact,
    and clients go on from the averaged factors. All clients have one rank.

    Args:
      spec: the adapted layers.
      residual_rank: send and add only so many leading singular components of the residual; 0 for
        all of it, as ``K r`` components or as a matrix, whichever is smaller.
      weights: of the means. The paper writes them equal; the identity holds for any.

    Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of
    Foundation Models", arXiv 2410.09432.

    Raises:
      InputError: a negative rank.
    """
    if residual_rank < 0:
        raise InputError(f"Method 'fedex_lora' needs residual_rank >= 0, got {residual_rank}.")

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        mean, share = _means(spec, cohort, result, weights)
        added = {}
        for path, pair in result.items():
            added[path] = _residual(pair, mean[path], start.gain[path], share)
            if residual_rank:
                u, s, vt = linalg.svd(added[path], residual_rank)
                added[path] = LoRA(u * s[..., None, :], vt)
        owned = jnp.any(owners(cohort, spec.rank), axis=0)
        adapter = keep_unowned(mean, server.adapter, owned)
        kernels = with_added(server.kernels, added)
        new = server._replace(adapter=adapter, kernels=kernels)
        return AggregateResult(new, clients, cohort.rank, added=added)

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        rank = rank.astype(np.int64)
        most = int(rank.sum())
        components = min(residual_rank or most, most)
        residual = FLOAT_BYTES * sum(
            s.adapted * min(components * (s.inputs + s.outputs), s.inputs * s.outputs)
            for s in spec.targets
        )
        up = rank * spec.component_size * FLOAT_BYTES
        return Traffic(up=up, down=up + residual, common=residual)

    return Method(
        name="fedex_lora",
        paper="arXiv 2410.09432",
        spec=spec,
        init=ServerState,
        broadcast=lambda server, clients, cohort: truncated_start(spec, server, cohort),
        aggregate=aggregate,
        traffic=traffic,
        check=need_equal_ranks("fedex_lora", "the heterogeneous, equally exact 'flora'"),
    )


def _root_mean_gain(a: Array, rank: Array) -> Array:
    """The root of the mean eigenvalue of ``a^T a`` over ``rank`` components, ``[(L,) 1, 1]``.

    Args:
      a: ``[(L,) i, R]``; where it is all zero, the result is 1.
      rank: ``int32[]``, components in use.
    """
    square = jnp.sum(jnp.square(a), axis=(-2, -1), keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(square / jnp.maximum(rank, 1).astype(a.dtype)), 1.0)


@checked_options
def lora_fair(
    spec: LoraSpec,
    *,
    penalty: float = 1.0,
    relative: bool = True,
    weights: Weights = "examples",
) -> Method:
    """LoRA-FAIR: averaged factors, `b` corrected towards the mean of the products.

    ``b + d`` with ``d`` the minimiser of ``||M - s a (b + d)||_F^2 + penalty g ||d||_F^2``, where
    ``M = sum_k p_k s a_k b_k``: ``d = (s^2 a^T a + penalty g)^-1 s a^T (M - s a b)``. The unit
    ``g`` of the penalty is ``||s a||_F^2 / r``, the mean eigenvalue of ``s^2 a^T a``. The base is
    not touched. All clients have one rank.

    Args:
      spec: the adapted layers.
      penalty: keeps `b` near the average: without it `b` drifts, and accuracy falls (the paper).
        In a direction of average gain ``1 / (1 + penalty)`` of the unpenalised correction is made,
        whatever the scale and the initialisation of `a`: half of it at 1, the default, 10 % at 9.
      relative: False takes ``g = 1``, the penalty on the bare ``||d||_F^2``. How strong it is then
        depends on the size of `a`: 0.01, the paper's value for its own loss, leaves 97 % of the
        correction with a Kaiming `a` and scale 1.
      weights: of the means.

    The paper minimises a dissimilarity by gradient steps on the server; which one is not known
    here (a digest calls it a cosine similarity, between 0 and 2 whatever the sizes, to which its
    penalty of 0.01 belongs). The squared distance is its plainest form and has the closed solution
    above, without a step size to choose.

    Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization
    Refinement", arXiv 2411.14961.

    Raises:
      InputError: penalty not above 0.
    """
    if not penalty > 0:
        raise InputError(f"Method 'lora_fair' needs a penalty above 0, got {penalty}.")

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        mean, share = _means(spec, cohort, result, weights)
        present = cohort.weight > 0  # of one rank and one scale
        scale, rank = (jnp.max(jnp.where(present, x, 0)) for x in (cohort.scale, cohort.rank))
        corrected = {}
        for path, pair in result.items():
            missed = _residual(pair, mean[path], start.gain[path], share)
            a, b = mean[path]
            unit = _root_mean_gain(a * scale, rank) if relative else jnp.ones(())
            change = linalg.ridge(a * scale / unit, missed, penalty) / unit
            corrected[path] = LoRA(a, b + change)
        owned = jnp.any(owners(cohort, spec.rank), axis=0)
        adapter = keep_unowned(corrected, server.adapter, owned)
        return AggregateResult(server._replace(adapter=adapter), clients, cohort.rank)

    return Method(
        name="lora_fair",
        paper="arXiv 2411.14961",
        spec=spec,
        init=plain_server,
        broadcast=lambda server, clients, cohort: truncated_start(spec, server, cohort),
        aggregate=aggregate,
        traffic=symmetric_traffic(spec),
        check=need_equal_ranks("lora_fair", "a heterogeneous method such as 'hlora'"),
    )
