"""FedRoRA: directions and their coefficients are trained apart; each client gets its own best."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
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
    if_any_present,
    per_client,
    plain_server,
)
from fedjax_lora.methods.svd import each_layer, only_adapted, split, weighted_stack


class ClientDirections(NamedTuple):
    """What the server computed for each client in its last round, the largest coefficient first.

    All `R` directions, so that a rank may change; each of `N` clients takes an adapter's memory.
    """

    directions: Adapter  # [N, (L,) i, R] and [N, (L,) R, o]
    coefficients: Gain  # [N, (L,) R], of the product: the client's scale is part of them
    known: Array  # bool[N], whether the client has taken part at all


Largest = Literal["signed", "magnitude"]


@checked_options
def fedrora(
    spec: LoraSpec,
    *,
    largest: Largest = "magnitude",
    first: float = 1.0,
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
      spec: the adapted layers. The paper's product has no scale; here the coefficients come on top
        of the scale that every adapter has (1 with ``alpha`` equal to `R`).
      largest: by magnitude, as the released code selects, which says that this reproduces its
        published numbers; or by signed value, as the paper writes.
      first: each coefficient of a fresh adapter is ``first / sqrt(r)``, over directions that are
        random and common to all; a model that is given (a warm start) is kept. The released code
        begins at 1, with directions drawn by each client. At 0 the model begins as it was
        pretrained, as with any other method.
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

    rule = _FedRora(spec, largest, first, weights)
    return Method(
        name="fedrora",
        paper="arXiv 2609.00632",
        spec=spec,
        init=plain_server,
        broadcast=rule.broadcast,
        aggregate=rule.aggregate,
        traffic=rule.traffic,
        init_clients=rule.init_clients,
        rates=Rates(coefficients=coefficient_rate),
        project=directions,
    )


@dataclasses.dataclass(frozen=True)
class _FedRora:
    """The functions of `fedrora`."""

    spec: LoraSpec
    largest: Largest
    first: float
    weights: Weights

    def init_clients(self, count: int) -> ClientDirections:
        """No client is known yet."""
        shapes = self.spec.shapes()
        own = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)
        sizes = {path: jnp.zeros(pair.b.shape[:-1]) for path, pair in own.items()}
        return ClientDirections(own, sizes, jnp.zeros(count, bool))

    def broadcast(
        self, server: ServerState, clients: ClientDirections, cohort: Cohort
    ) -> ClientInit:
        """Each client's own directions; those of the global model before its first round."""
        active = lora.spread(self.spec, lora.prefix_mask(cohort.rank, self.spec.rank))
        mask = lora.factor_mask(active)
        common = per_client(directions_of(server.adapter, cohort.key))
        adapter, effective = trees.where(
            clients.known,
            (clients.directions, clients.coefficients),
            (common, self._global_coefficients(server, cohort)),
        )
        coefficients = {
            path: jnp.where(active[path], x / trees.expand(cohort.scale, x), 0.0)
            for path, x in effective.items()
        }
        gain = client_gain(self.spec, cohort, active)
        return ClientInit(lora.keep(adapter, mask), gain, mask, coefficients)

    def _global_coefficients(self, server: ServerState, cohort: Cohort) -> Gain:
        """The global model's coefficients, the first ones before it has any: ``[c, (L,) R]``.

        A model that something was trained into, or that a run begins from, is not moved: what it
        does not use begins at 0.
        """
        size = {
            path: jnp.linalg.norm(pair.a, axis=-2) * jnp.linalg.norm(pair.b, axis=-1)
            for path, pair in server.adapter.items()
        }
        is_trained = jnp.any(jnp.stack([jnp.any(x > 0) for x in size.values()]))
        first = self.first / jnp.sqrt(cohort.rank.astype(jnp.float32))  # [c]
        first = jnp.where(is_trained, 0.0, first)
        return {
            path: jnp.where(x > 0, self.spec.server_scale * x, trees.expand(first, x))
            for path, x in per_client(size).items()
        }

    def aggregate(
        self,
        server: ServerState,
        clients: ClientDirections,
        cohort: Cohort,
        start: ClientInit,
        result: Adapter,
    ) -> AggregateResult:
        """The leading triplets of the mean product, and each client's best of them."""
        share = shares(cohort.weight, self.weights)
        each = jnp.broadcast_to(share[:, None], (share.shape[0], self.spec.rank))
        layers = {
            path: each_layer(self._layer, (*pair, start.gain[path]), each, ())
            for path, pair in result.items()
        }
        triplets = only_adapted(self.spec, {path: pair for path, (pair, _, _) in layers.items()})
        mean = {
            path: split(pair.a, layers[path][1] / self.spec.server_scale, pair.b, "a")
            for path, pair in triplets.items()
        }
        coefficients = {path: jnp.moveaxis(x, -2, 0) for path, (_, _, x) in layers.items()}
        adapter = if_any_present(cohort, mean, server.adapter)
        own = self._ordered(triplets, coefficients, jnp.ones_like(clients.known))
        return AggregateResult(server._replace(adapter=adapter), own, cohort.rank)

    def _layer(self, a: Array, b: Array, gain: Array, share: Array) -> tuple[LoRA, Array, Array]:
        """The triplets of one layer's mean, and all clients' coefficients ``[c, R]``."""
        u, s, vt = linalg.svd(weighted_stack(LoRA(a, b), gain, share), self.spec.rank)
        left = linalg.matmul(u.T[None], a * gain[:, None])  # [c, R, R], u_k^T a_m
        right = linalg.matmul(b, vt.T[None])  # [c, R, R], b_m v_k
        return LoRA(u, vt), s, jnp.sum(left * right.mT, axis=-1)

    def _ordered(self, triplets: Adapter, coefficients: Gain, known: Array) -> ClientDirections:
        """Directions and coefficients ``[c, (L,) R]`` in each client's own order."""
        signed = self.largest == "signed"
        order = {
            path: jnp.argsort(-x if signed else -jnp.abs(x), axis=-1)
            for path, x in coefficients.items()
        }
        sizes = {
            path: jnp.take_along_axis(x, order[path], axis=-1) for path, x in coefficients.items()
        }
        return ClientDirections(reordered(triplets, order), sizes, known)

    def traffic(self, server: ServerState, rank: np.ndarray, round: int) -> Traffic:
        """Both factors and the coefficients, each way."""
        component = self.spec.component_size + self.spec.matrices
        size = rank.astype(np.int64) * component * FLOAT_BYTES
        return Traffic(up=size, down=size, factors=3)


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


def reordered(adapter: Adapter, order: Mapping[str, Array]) -> Adapter:
    """The components of one adapter in each client's order, ``int32[c, (L,) R]`` per path."""
    return {
        path: LoRA(
            jnp.take_along_axis(pair.a[None], order[path][..., None, :], axis=-1),
            jnp.take_along_axis(pair.b[None], order[path][..., :, None], axis=-2),
        )
        for path, pair in adapter.items()
    }
