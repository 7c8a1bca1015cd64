"""Defences that compare clients by what they add to the model, not by their factors.

A client's update is the change of ``gain * a @ b`` in every adapted layer, and of the head. Two
clients of other ranks, or with other factors of the same product, are compared for what they do.
Distances and angles follow from inner products of updates, which follow from the factors:
``<a b, c d> = sum((a^T c) * (b d^T))``; no dense matrix is formed.

Each defence is a function of these inner products and the weights, and returns weights: 0 for a
client that is left out. So it goes with every method, those that stack or decompose products too.
"""

import fractions
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import ClientParams, Key
from fedjax_lora.federated.transforms.base import UpdateTransform, Weigh

STEPS = 16
"""Steps of Weiszfeld's iteration: each divides the distance to the geometric median."""


def square_distances(inner: Float[Array, "c c"]) -> Float[Array, "c c"]:
    """Squares of the distances between updates, from their inner products."""
    square = jnp.diagonal(inner)
    return jnp.maximum(square[:, None] + square[None] - 2 * inner, 0.0)


@checked_options
def krum(*, attackers: float = 0.2, keep: int | None = None) -> UpdateTransform:
    """Keep the clients whose updates have the nearest neighbours (multi-Krum).

    Of `n` clients that answer, of which ``f = floor(attackers * n)`` may attack, a client's score
    is the sum of the squared distances to its ``n - f - 2`` nearest neighbours (at least one); the
    clients of the lowest scores are kept, the others left out.

    Args:
      attackers: share of attackers that is reckoned with.
      keep: clients kept; ``n - f`` by default, 1 is Krum.

    Blanchard et al., "Machine Learning with Adversaries", arXiv 1703.02757.

    Raises:
      InputError: a share outside [0, 0.5), or less than one client kept.
    """
    if not 0 <= attackers < 0.5 or (keep is not None and keep < 1):
        raise InputError(
            "Update 'krum' needs attackers from 0 to less than 0.5 and keep of at least 1, got "
            f"{attackers} and {keep}."
        )
    exact = fractions.Fraction(str(attackers))

    def weigh(inner: Array, weight: Array) -> Array:
        present, clients = weight > 0, weight.shape[0]
        most = jnp.asarray([math.floor(exact * n) for n in range(clients + 1)])
        n = jnp.sum(present)
        near = jnp.maximum(n - most[n] - 2, 1)
        others = present[None] & ~jnp.eye(clients, dtype=bool)
        ascending = jnp.sort(jnp.where(others, square_distances(inner), jnp.inf), axis=1)
        counted = (jnp.arange(clients) < near)[None] & jnp.isfinite(ascending)
        score = jnp.sum(jnp.where(counted, ascending, 0), axis=1)
        place = jnp.argsort(jnp.argsort(jnp.where(present, score, jnp.inf)))
        return jnp.where(place < (n - most[n] if keep is None else keep), weight, 0.0)

    return _defence(weigh)


@checked_options
def geometric_median() -> UpdateTransform:
    """Weigh clients so that their mean update is the geometric median of the updates.

    The geometric median is the point whose weighted sum of distances to the updates is smallest;
    far updates pull it no more than near ones. It is a weighted mean of the updates: the weights
    are found by Weiszfeld's iteration and given to the method in place of the clients' own. A
    method that counts all clients alike would not see them, and is refused.

    Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", arXiv 1912.13445.
    """

    def weigh(inner: Array, weight: Array) -> Array:
        return center(inner, weight) * jnp.sum(weight)

    return _defence(weigh, reweighs=True)


def center(inner: Float[Array, "c c"], weight: Float[Array, " c"]) -> Float[Array, " c"]:
    """Shares with which updates are averaged to their geometric median, 0 for absent clients."""
    square = jnp.diagonal(inner)
    smallest = 1e-6 * jnp.sqrt(jnp.max(square)) + 1e-30

    def normal(share: Array) -> Array:
        return trees.safe_divide(share, jnp.sum(share), jnp.zeros(()))

    def step(_: Array, share: Array) -> Array:
        moved = inner @ share
        distance = jnp.sqrt(jnp.maximum(square - 2 * moved + share @ moved, 0.0))
        return normal(weight / jnp.maximum(distance, smallest))

    return jax.lax.fori_loop(0, STEPS, step, normal(weight))


@checked_options
def reject_dissimilar(*, least: float = 0.0) -> UpdateTransform:
    """Leave out clients whose update points away from where most updates point.

    The direction is that of the geometric median of all updates at length one, weighted equally, so
    that neither a long update nor a large client decides it.

    Args:
      least: smallest cosine of the angle between an update and that direction.

    Raises:
      InputError: a cosine outside [-1, 1).
    """
    if not -1 <= least < 1:
        raise InputError(f"Update 'reject_dissimilar' needs least from -1 to below 1, got {least}.")

    def weigh(inner: Array, weight: Array) -> Array:
        cosine = cosines(inner)
        equal = ((weight > 0) & (jnp.diagonal(inner) > 0)).astype(weight.dtype)
        share = center(cosine, equal)
        towards = cosine @ share
        length = jnp.sqrt(jnp.maximum(share @ towards, 1e-30))
        return jnp.where(towards >= least * length, weight, 0.0)

    return _defence(weigh)


@checked_options
def foolsgold(*, least: float = 0.5) -> UpdateTransform:
    """Leave out clients that are too similar to each other: attackers with one aim (Sybils).

    FoolsGold's weight of a client is ``logit(1 - s)``, cut to [0, 1], where `s` is the largest
    cosine of its update with another's, divided by that of the most dissimilar client, and smaller
    for a client that is more honest than the one it resembles ("pardoning"). Here a client below
    ``least`` is left out, and similarity is that of this round's updates; the paper adds up
    the updates of all rounds.

    Args:
      least: weight below which a client is left out.

    Fung, Yoon, Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", arXiv
    1808.04866.
    """
    if not 0 < least < 1:
        raise InputError(f"Update 'foolsgold' needs least between 0 and 1, got {least}.")

    def weigh(inner: Array, weight: Array) -> Array:
        present = weight > 0
        others = present[:, None] & present[None] & ~jnp.eye(len(weight), dtype=bool)
        cosine = jnp.where(others, cosines(inner), -1.0)
        largest = jnp.max(cosine, axis=1)
        own = jnp.maximum(largest, 0.0)[:, None]
        pardon = jnp.where(largest[None] > own, own / jnp.maximum(largest, 1e-30)[None], 1.0)
        similar = jnp.max(jnp.where(others, cosine * pardon, -1.0), axis=1)
        share = jnp.clip(1 - similar, 0.0, 1.0)
        share = share / jnp.maximum(jnp.max(jnp.where(present, share, 0)), 1e-30)
        share = jnp.clip(share, 1e-6, 1 - 1e-6)
        trust = jnp.clip(jnp.log(share / (1 - share)) + 0.5, 0.0, 1.0)
        return jnp.where(trust < least, 0.0, weight)

    return _defence(weigh)


def cosines(inner: Float[Array, "c c"]) -> Float[Array, "c c"]:
    """Cosines of the angles between updates; 0 with an update that is 0."""
    length = jnp.sqrt(jnp.maximum(jnp.diagonal(inner), 0.0))
    return trees.safe_divide(inner, length[:, None] * length[None], jnp.zeros(()))


def _defence(weigh: Weigh, *, reweighs: bool = False) -> UpdateTransform:
    """A transform that changes weights by the inner products alone."""

    def keep(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        return trained, weight

    return UpdateTransform(apply=keep, stage="server", weigh=weigh, reweighs=reweighs)
