"""Methods that train one factor at a time, so that averaging it is exact.

With `a` common to all, ``sum_k p_k (a b_k) = a (sum_k p_k b_k)``, and likewise with `b` common.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, masked_mean, mixed_late
from fedjax_lora.methods.base import (
    FLOAT_BYTES,
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    Mix,
    ServerState,
    Traffic,
    if_any_present,
    truncated_start,
)
from fedjax_lora.methods.svd import only_adapted, refactor


def one_factor(
    spec: LoraSpec,
    trains_b: Callable[[Array | int], Array | bool],
    *,
    name: str,
    paper: str = "",
    weights: Weights,
    late: tuple[Mix, ...] = (),
) -> Method:
    """Train `b` in the rounds where ``trains_b(round)``, else `a`; average it over its owners.

    The other factor keeps its value bit for bit. With different ranks, a component is averaged over
    the clients that own it, which is exact only among them.
    """

    def broadcast(server: ServerState, clients: Any, cohort: Cohort) -> ClientInit:
        start = truncated_start(spec, server, cohort)
        b = jnp.asarray(trains_b(cohort.round))
        active = lora.spread(spec, lora.prefix_mask(cohort.rank, spec.rank))
        return start._replace(trainable=lora.factor_mask(active, a=~b, b=b))

    mean = masked_mean(spec, weights=weights)

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        outcome = mean.aggregate(server, clients, cohort, start, result)
        new, b = outcome.server.adapter, trains_b(cohort.round)
        adapter = {
            path: LoRA(jnp.where(b, old.a, new[path].a), jnp.where(b, new[path].b, old.b))
            for path, old in server.adapter.items()
        }
        return outcome._replace(server=server._replace(adapter=adapter), owned=())

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        sizes = spec.factor_sizes
        size = rank.astype(np.int64) * (sizes.b if trains_b(round) else sizes.a) * FLOAT_BYTES
        return Traffic(up=size, down=size, factors=1)

    return dataclasses.replace(
        mean,
        name=name,
        paper=paper,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=traffic,
        late=late,
    )


@checked_options
def ffa_lora(spec: LoraSpec, *, weights: Weights = "examples") -> Method:
    """FFA-LoRA: `a` stays as it was drawn, only `b` is trained and averaged.

    ``sum_k p_k s a b_k = s a (sum_k p_k b_k)``: no aggregation noise with equal ranks, half the
    traffic, half the freedom. `a` is common, so a client of rank `r` uses its first `r` columns;
    each row of `b` is averaged over its owners, which is exact only among them.

    Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", arXiv 2403.12313.
    """
    always = lambda round: round >= 0  # noqa: E731
    return one_factor(
        spec,
        always,
        name="ffa_lora",
        paper="arXiv 2403.12313",
        weights=weights,
        late=mixed_late(weights),
    )


@checked_options
def fedsvd(spec: LoraSpec, *, weights: Weights = "examples") -> Method:
    """FedSVD: FFA-LoRA whose `a` becomes the singular vectors of the product after every round.

    Clients train and send only `b`; the server averages it, and factors ``a b = U S V^T`` with the
    `a` of the round: ``a <- U`` (orthonormal columns), ``b <- S V^T``. The model stays as it is, so
    the mean is as exact as FFA-LoRA's, but `a` follows what was learnt, and its orthonormal columns
    bound the gradients of `b`, which is what differential privacy needs. The new `a` is sent down.

    Args:
      spec: the adapted layers.
      weights: of the mean.

    The first `a` is as it was drawn. A public re-implementation slices rows of `V` where the paper
    has rows of ``V^T``.

    Lee et al., "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA",
    arXiv 2505.12805.
    """
    always = lambda round: round >= 0  # noqa: E731
    trained = one_factor(spec, always, name="fedsvd", paper="arXiv 2505.12805", weights=weights)

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        outcome = trained.aggregate(server, clients, cohort, start, result)
        turned = {
            path: refactor(pair, spec.rank, 1.0, "b")
            for path, pair in outcome.server.adapter.items()
        }
        adapter = if_any_present(cohort, only_adapted(spec, turned), server.adapter)
        return outcome._replace(server=server._replace(adapter=adapter))

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        up = trained.traffic(server, rank, round).up
        return Traffic(up, rank.astype(np.int64) * spec.component_size * FLOAT_BYTES, factors=1)

    return dataclasses.replace(trained, aggregate=aggregate, traffic=traffic, averages=False)


@checked_options
def rolora(spec: LoraSpec, *, weights: Weights = "examples") -> Method:
    """RoLoRA: `b` is trained and averaged in one round, `a` in the next, all clients in step.

    Each half is exact with equal ranks, as in FFA-LoRA, and both factors learn. `b` comes first:
    as long as it is zero, `a` has no gradient. A client receives only the factor that the round
    before has changed, as if it had taken part in it.

    Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA",
    arXiv 2409.02346.
    """
    even = lambda round: round % 2 == 0  # noqa: E731
    return one_factor(spec, even, name="rolora", paper="arXiv 2409.02346", weights=weights)
