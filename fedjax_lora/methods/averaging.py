"""Methods that average factors component by component.

All of them compute, for component `j` of either factor, ``sum_k w[k, j] * x_k[j]`` and differ only
in the weights `w`. With ``p_k`` the share of client `k` and ``own[k, j] = (j < r_k)``:

==================  =============================================================
FedIT               ``p_k`` (all ranks equal)
zero padding        ``p_k * own``: what one of `K` clients owns becomes `1/K` of it
masked mean (RBLA)  ``p_k * own / sum_k p_k * own``
replication         missing components are first filled from those who have them
==================  =============================================================

All weights of a component that nobody in the cohort owns are 0; it keeps the server's value, or
becomes zero with ``empty="zero"`` (`Empty`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.cohort_sum import weighted_sum
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.base import (
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    Mix,
    ServerState,
    need_equal_ranks,
    no_check,
    plain_server,
    symmetric_traffic,
    truncated_start,
)

Weights = Literal["examples", "uniform"]

Empty = Literal["keep", "zero"]
"""What becomes of components that no client of the cohort owns: they keep the server's value, or
both of their factors become zero."""


def shares(weight: Float[Array, " c"], kind: Weights = "examples") -> Float[Array, " c"]:
    """Weights of the cohort, zero for absent clients, summing to one over the others: ``[c]``.

    Raises:
      InputError: a kind that does not exist.
    """
    if kind not in get_args(Weights):
        raise InputError(f"Weights are examples or uniform, got {kind!r}.")
    if kind == "uniform":
        weight = (weight > 0).astype(weight.dtype)
    return trees.safe_divide(weight, jnp.sum(weight), jnp.zeros(()))


def mixed_late(weights: Weights) -> tuple[Mix, ...]:
    """How a mean over owners mixes late clients: models only if it weighs by examples."""
    return ("changes", "models") if weights == "examples" else ("changes",)


def owners(cohort: Cohort, most: int) -> Bool[Array, "c R"]:
    """Which present client has which component: ``bool[c, R]``."""
    return lora.prefix_mask(cohort.rank, most) & (cohort.weight > 0)[:, None]


def combine(result: Adapter, weight: Array | Mapping[str, Array]) -> Adapter:
    """``sum_k weight[k, j] * component j of client k``, both factors.

    Args:
      result: ``[c, (L,) i, R]`` and ``[c, (L,) R, o]``.
      weight: ``[c, R]``, or ``[c, (L,) R]`` per path. Clients of weight 0 have no influence, even
        if they are not finite.
    """

    def layer(path: str, pair: LoRA) -> LoRA:
        w = weight[path] if isinstance(weight, Mapping) else weight
        w = w.reshape(w.shape[0], *(1,) * (pair.a.ndim - 1 - w.ndim), *w.shape[1:])
        return LoRA(weighted_sum(pair.a, w[..., None, :]), weighted_sum(pair.b, w[..., :, None]))

    return {path: layer(path, pair) for path, pair in result.items()}


def keep_unowned(new: Adapter, old: Adapter, owned: Array | Mapping[str, Array]) -> Adapter:
    """``new`` where a component has an owner, the old value bit for bit elsewhere.

    Args:
      new: the aggregate, ``[(L,) i, R]`` and ``[(L,) R, o]``.
      old: the server's adapter.
      owned: ``bool[R]``, or ``bool[(L,) R]`` per path.
    """

    def layer(path: str, n: LoRA, o: LoRA) -> LoRA:
        mask = owned[path] if isinstance(owned, Mapping) else owned
        mask = mask.reshape((1,) * (n.a.ndim - 1 - mask.ndim) + mask.shape)
        return LoRA(
            jnp.where(mask[..., None, :], n.a, o.a), jnp.where(mask[..., :, None], n.b, o.b)
        )

    return {path: layer(path, new[path], old[path]) for path in new}


@checked_options
def averaging(
    spec: LoraSpec,
    weigh: Callable[[Cohort, ClientInit, Adapter], Array | Mapping[str, Array]],
    *,
    name: str,
    paper: str = "",
    empty: Empty = "keep",
    late: tuple[Mix, ...] = (),
    check: Callable[[np.ndarray], None] = no_check,
) -> Method:
    """A method that averages with the weights returned by ``weigh``, ``[c, R]`` or per path.

    Args:
      spec: the adapted layers.
      weigh: ``(cohort, start, result) -> weights``, 0 for absent clients.
      name: of the method.
      paper: where it is described.
      empty: components that no present client owns keep the server's value, or become zero.
      late: how late clients may be mixed, see `Method`.
      check: raises `InputError` for ranks that the method does not take.
    """

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        mean = combine(result, weigh(cohort, start, result))  # zero where nobody owns anything
        owned = jnp.any(owners(cohort, spec.rank), axis=0)
        if empty == "zero":  # every client that is present sends zeros for what it does not own
            owned = jnp.broadcast_to(jnp.any(cohort.weight > 0), owned.shape)
        adapter = keep_unowned(mean, server.adapter, owned)
        parts = lora.factor_mask(lora.spread(spec, owned))
        return AggregateResult(server._replace(adapter=adapter), clients, cohort.rank, parts)

    return Method(
        name=name,
        paper=paper,
        spec=spec,
        init=plain_server,
        broadcast=lambda server, clients, cohort: truncated_start(spec, server, cohort),
        aggregate=aggregate,
        traffic=symmetric_traffic(spec),
        averages=True,
        late=late,
        check=check,
    )


def _padded_mean(
    spec: LoraSpec,
    weights: Weights,
    *,
    name: str,
    paper: str,
    empty: Empty = "keep",
    late: tuple[Mix, ...] = ("changes",),
    check: Callable[[np.ndarray], None] = no_check,
) -> Method:
    def weigh(cohort: Cohort, start: ClientInit, result: Adapter) -> Array:
        share = shares(cohort.weight, weights)
        return jnp.where(owners(cohort, spec.rank), share[:, None], 0.0)

    return averaging(spec, weigh, name=name, paper=paper, empty=empty, late=late, check=check)


@checked_options
def zero_padding(spec: LoraSpec, *, empty: Empty = "keep", weights: Weights = "examples") -> Method:
    """Factors padded with zeros to rank `R`, then averaged: dilutes what few clients own.

    Component `j` is multiplied by the weight share of the clients that own it; with one owner among
    `K` equal clients by ``1/K`` in each factor, ``1/K**2`` in the product.

    Args:
      spec: the adapted layers.
      empty: what becomes of the components that nobody in the cohort owns. ``"zero"`` is the rule
        taken literally, and what public code does that pads to the highest rank of the federation:
        the mean of zeros is zero in both factors. Such a component has no gradient from then on, so
        that no client can ever train it again: one round without a high-rank client (a third of the
        rounds with 10 of 100 clients and 10 % of them high-rank) turns the method into one of lower
        rank. ``"keep"``, the default, pads to the highest rank of the cohort and keeps the server's
        other components. It is the stronger baseline: what it loses to another method it loses by
        dilution, which the papers discuss, and not by the sampling of cohorts.
      weights: of the mean.

    The baseline of Byun & Lee, arXiv 2406.17477, and of most later work; none of the papers states
    what becomes of components without an owner.
    """
    return _padded_mean(spec, weights, name="zero_padding", paper="arXiv 2406.17477", empty=empty)


@checked_options
def fedit(spec: LoraSpec, *, weights: Weights = "examples") -> Method:
    """Plain averaging of both factors; all clients have one rank.

    ``a = sum_k p_k a_k``, ``b = sum_k p_k b_k``. Its product differs from the mean of the products
    by the covariance ``sum_k p_k (a_k - a)(b_k - b)``.

    Zhang et al., "Towards Building the Federated GPT", arXiv 2305.05644.
    """
    check = need_equal_ranks("fedit", "a heterogeneous method such as 'zero_padding'")
    return _padded_mean(
        spec,
        weights,
        name="fedit",
        paper="arXiv 2305.05644",
        late=mixed_late(weights),
        check=check,
    )


@checked_options
def masked_mean(spec: LoraSpec, *, weights: Weights = "examples") -> Method:
    """RBLA: each component averaged over the clients that own it.

    ``x[j] = sum_k p_k own[k, j] x_k[j] / sum_k p_k own[k, j]``.

    "RBLA: Rank-Based LoRA Aggregation", arXiv 2408.08699.
    """

    def weigh(cohort: Cohort, start: ClientInit, result: Adapter) -> Array:
        return owner_shares(cohort.weight, owners(cohort, spec.rank), weights)

    late = mixed_late(weights)
    return averaging(spec, weigh, name="masked_mean", paper="arXiv 2408.08699", late=late)


def owner_shares(
    weight: Float[Array, " c"], owned: Bool[Array, "c *sites R"], kind: Weights
) -> Float[Array, "c *sites R"]:
    """Weights that sum to one over the owners of each component, 0 where there are none.

    Args:
      weight: ``[c]``.
      owned: ``bool[c, ..., R]``.
      kind: by number of examples, or equal.
    """
    share = shares(weight, kind)
    mass = jnp.where(owned, trees.expand(share, owned), 0.0)
    return trees.safe_divide(mass, jnp.sum(mass, axis=0, keepdims=True), jnp.zeros_like(mass))


@checked_options
def replication(
    spec: LoraSpec,
    *,
    donors: Literal["owners", "highest"] = "owners",
    inner: Literal["outer", "uniform"] = "outer",
    weights: Weights = "examples",
) -> Method:
    """Replication padding: missing components are filled with the high-rank clients' mean.

    ``fill[j] = sum_{k in H_j} q_k x_k[j] / sum_{k in H_j} q_k`` over the donors ``H_j``; a client
    without component `j` is padded with ``fill[j]``; then ``x[j] = sum_k p_k padded_k[j]``.

    With the default options (all owners donate, ``q = p``) this is `masked_mean`, whatever the
    number of rank levels; with two levels also if only the highest rank donates. The two differ
    with ``inner="uniform"`` and, from three levels on, with ``donors="highest"``.

    If no client in the cohort owns component `j` (a third of the rounds with 10 of 100 clients and
    10 % of them high-rank), the paper's rule is not known; the server's value stays, since a zero
    would erase what earlier rounds learned.

    Args:
      spec: the adapted layers.
      donors: who fills component `j` if there are more than two ranks, which the paper does not
        treat: all its owners, or only the clients of the cohort's highest rank.
      inner: weights among the donors: those of the outer mean, or equal. The paper weighs by the
        number of high-rank clients in a way that is not public.
      weights: weights of the outer mean.

    Byun & Lee, "Towards Federated Low-Rank Adaptation of Language Models with Rank Heterogeneity",
    arXiv 2406.17477.
    """

    def weigh(cohort: Cohort, start: ClientInit, result: Adapter) -> Array:
        share = shares(cohort.weight, weights)
        owned = owners(cohort, spec.rank)
        giver = owned
        if donors == "highest":
            present = jnp.where(cohort.weight > 0, cohort.rank, 0)
            giver = owned & (cohort.rank == jnp.max(present))[:, None]
        kind = "uniform" if inner == "uniform" else weights
        fill = owner_shares(cohort.weight, giver, kind)  # [c, R], weights of the filling mean
        missing = jnp.sum(jnp.where(owned, 0.0, share[:, None]), axis=0)  # [R], mass to be filled
        return jnp.where(owned, share[:, None], 0.0) + missing[None] * fill

    return averaging(spec, weigh, name="replication", paper="arXiv 2406.17477", late=("changes",))
