"""FedRoRA: directions and their sizes are trained apart, and each client gets directions to fit."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Adapter, Array, Gain, Key, LoRA, Rates
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
    client_gain,
    per_client,
    plain_server,
)
from fedjax_lora.methods.svd import each_layer, if_anybody, only_adapted, split, weighted_stack


class Own(NamedTuple):
    """What the server found for each client in its last round, the largest coefficient first.

    All `R` directions, so that a rank may change; each of `N` clients takes an adapter's memory.
    """

    directions: Adapter  # [N, (L,) i, R] and [N, (L,) R, o]
    coefficients: Gain  # [N, (L,) R], of the product: the client's scale is part of them
    known: Array  # bool[N], whether the client has taken part at all


def fedrora(
    spec: LoraSpec,
    *,
    largest: Literal["signed", "magnitude"] = "signed",
    first: float = 0.0,
    coefficient_rate: float = 100.0,
    weights: Weights = "examples",
) -> Method:
    """FedRoRA: unit-norm directions with trained coefficients; each client gets its own best `r`.

    A client trains ``delta_i = a_i diag(s_i) b_i``, all three, and scales the columns of ``a_i``
    and the rows of ``b_i`` back to length 1 after every step. The server takes the `R` leading
    triplets of ``sum_i p_i delta_i = U S V^T``. Client `i` gets the `r` directions ``u_k v_k^T``
    with its largest ``s_ik = u_k^T delta_i v_k``, and those as its coefficients. The global model,
    for evaluation and export, is ``U S V^T``.

    A client that is absent keeps what it got at the end of the last round it took part in, ordered
    by coefficient; if its rank is raised meanwhile, it gets the next of them. Before its first
    round it begins at the first `r` components of the global model.

    Args:
      spec: the sites. The paper's product has no scale; here the coefficients come on top of
        the scale that every adapter has (1 with ``alpha`` equal to `R`).
      largest: by signed value, as the paper writes, or by magnitude, as its released code does.
      first: each coefficient before anybody has trained is ``first / sqrt(r)``, over directions
        that are random and common to all. At 0 the model begins as it was pretrained, as with any
        other method. The released code begins at 1, with directions drawn by each client.
      coefficient_rate: the learning rate of the coefficients over that of the directions; 100 in
        the released code.
      weights: of the mean.

    The released code takes unit lengths inside the forward pass, of factors that are free to grow.

    Wang et al., "Breaking the Structural Identity: Personalized Federated LoRA Fine-tuning under
    Rank Heterogeneity", arXiv 2609.00632.

    Raises:
      InputError: coefficient_rate not above 0 or first below 0, or not finite.
    """
    if not 0 < coefficient_rate < math.inf:
        raise InputError(
            f"Method 'fedrora' needs a coefficient_rate above 0 and finite, got {coefficient_rate}."
        )
    if not 0 <= first < math.inf:
        raise InputError(f"Method 'fedrora' needs first to be 0 or more and finite, got {first}.")

    def init_clients(count: int) -> Own:
        own = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), spec.shapes())
        sizes = {path: jnp.zeros(pair.b.shape[:-1]) for path, pair in own.items()}
        return Own(own, sizes, jnp.zeros(count, bool))

    def broadcast(server: ServerState, clients: Own, cohort: Cohort) -> ClientInit:
        active = lora.spread(spec, lora.prefix_mask(cohort.rank, spec.rank))
        mask = lora.factor_mask(active)
        size = {
            path: jnp.linalg.norm(pair.a, axis=-2) * jnp.linalg.norm(pair.b, axis=-1)
            for path, pair in server.adapter.items()
        }
        begin = first / jnp.sqrt(cohort.rank.astype(jnp.float32))  # [c]
        shared = {
            path: jnp.where(x > 0, spec.server_scale * x, trees.expand(begin, x))
            for path, x in per_client(size).items()
        }
        common = per_client(directions_of(server.adapter, cohort.key))
        adapter, effective = trees.where(
            clients.known, (clients.directions, clients.coefficients), (common, shared)
        )
        coefficients = {
            path: jnp.where(active[path], x / trees.expand(cohort.scale, x), 0.0)
            for path, x in effective.items()
        }
        gain = client_gain(spec, cohort, active)
        return ClientInit(lora.keep(adapter, mask), gain, mask, coefficients)

    def layer(a: Array, b: Array, gain: Array, share: Array) -> tuple[LoRA, Array, Array]:
        """The triplets of the mean, and everybody's coefficients ``[c, R]``."""
        u, s, vt = linalg.svd(weighted_stack(LoRA(a, b), gain, share), spec.rank)
        left = linalg.matmul(u.T[None], a * gain[:, None])  # [c, R, R], u_k^T a_m
        right = linalg.matmul(b, vt.T[None])  # [c, R, R], b_m v_k
        return LoRA(u, vt), s, jnp.sum(left * right.mT, axis=-1)

    def aggregate(
        server: ServerState, clients: Own, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        share = shares(cohort.weight, weights)
        each = jnp.broadcast_to(share[:, None], (share.shape[0], spec.rank))
        found = {
            path: each_layer(layer, (*pair, start.gain[path]), each, ())
            for path, pair in result.items()
        }
        triplets = only_adapted(spec, {path: pair for path, (pair, _, _) in found.items()})
        mean = {
            path: split(pair.a, found[path][1] / spec.server_scale, pair.b, "a")
            for path, pair in triplets.items()
        }
        own = {path: jnp.moveaxis(x, -2, 0) for path, (_, _, x) in found.items()}  # [c, (L,) R]
        order = {
            path: jnp.argsort(-jnp.abs(x) if largest == "magnitude" else -x, axis=-1)
            for path, x in own.items()
        }
        sizes = {path: jnp.take_along_axis(x, order[path], axis=-1) for path, x in own.items()}
        adapter = if_anybody(cohort, mean, server.adapter)
        kept = Own(reordered(triplets, order), sizes, jnp.ones_like(clients.known))
        return AggregateResult(server._replace(adapter=adapter), kept, cohort.rank)

    one = spec.component_size + spec.matrices

    def traffic(server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        size = rank.astype(np.int64) * one * FLOAT_BYTES
        return Traffic(up=size, down=size, factors=3)

    return Method(
        name="fedrora",
        paper="arXiv 2609.00632",
        spec=spec,
        init=plain_server,
        broadcast=broadcast,
        aggregate=aggregate,
        traffic=traffic,
        init_clients=init_clients,
        rates=Rates(coefficients=coefficient_rate),
        project=directions,
    )


def directions(adapter: Adapter) -> Adapter:
    """Columns of ``a`` and rows of ``b`` at length 1, zeros as they are."""

    def unit(x: Any, axis: int) -> Array:
        size = jnp.linalg.norm(x, axis=axis, keepdims=True)
        return x / jnp.where(size > 0, size, 1.0)

    return {path: LoRA(unit(pair.a, -2), unit(pair.b, -1)) for path, pair in adapter.items()}


def directions_of(adapter: Adapter, key: Key) -> Adapter:
    """The directions of an adapter, drawn at random where it has none (a fresh ``b`` is zero)."""
    leaves, structure = jax.tree.flatten(adapter)
    drawn = [jax.random.normal(jax.random.fold_in(key, n), x.shape) for n, x in enumerate(leaves)]
    random = structure.unflatten(drawn)

    def either(x: LoRA, other: LoRA) -> LoRA:
        has_a, has_b = jnp.any(x.a != 0, -2, keepdims=True), jnp.any(x.b != 0, -1, keepdims=True)
        return LoRA(jnp.where(has_a, x.a, other.a), jnp.where(has_b, x.b, other.b))

    return directions({path: either(pair, random[path]) for path, pair in adapter.items()})


def reordered(adapter: Adapter, order: dict[str, Any]) -> Adapter:
    """The components of one adapter in every client's order, ``int32[c, (L,) R]`` per path."""
    return {
        path: LoRA(
            jnp.take_along_axis(pair.a[None], order[path][..., None, :], axis=-1),
            jnp.take_along_axis(pair.b[None], order[path][..., :, None], axis=-2),
        )
        for path, pair in adapter.items()
    }
