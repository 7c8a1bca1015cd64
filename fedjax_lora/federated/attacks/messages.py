"""Attacks on messages: what attackers send in place of what they have trained."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Array, ClientParams, Key
from fedjax_lora.federated.attacks.base import Among, Attack, Send
from fedjax_lora.federated.transforms.base import draw, norms


@checked_options
def sign_flip(*, share: float, scale: float = 1.0, among: Among = "any") -> Attack:
    """Attackers send the opposite of their change.

    Args:
      share: share of the clients.
      scale: how many times as long it is.
      among: whom attackers are drawn from.
    """
    return scaling(share=share, factor=-scale, among=among)


@checked_options
def scaling(*, share: float, factor: float = 10.0, among: Among = "any") -> Attack:
    """Attackers multiply their change, to outweigh the others.

    Args:
      share: share of the clients.
      factor: of the change.
      among: whom attackers are drawn from.

    Bagdasaryan et al., "How To Backdoor Federated Learning", arXiv 1807.00459.
    """
    if not math.isfinite(factor):
        raise InputError(f"Attacks need finite factors, got {factor}.")

    def send(
        change: ClientParams, trainable: ClientParams, honest: Array, keys: Key
    ) -> ClientParams:
        return jax.tree.map(lambda d: factor * d, change)

    return Attack(share=share, among=among, send=send)


@checked_options
def gaussian(*, share: float, factor: float = 1.0, among: Among = "any") -> Attack:
    """Attackers send normal noise.

    Args:
      share: share of the clients.
      factor: length of the noise, in mean lengths of the honest clients' changes.
      among: whom attackers are drawn from.
    """

    def send(
        change: ClientParams, trainable: ClientParams, honest: Array, keys: Key
    ) -> ClientParams:
        noise = draw(jax.random.normal, keys, change)
        noise = jax.tree.map(lambda x, m: jnp.where(m, x, 0), noise, trainable)
        length, own = norms(change), norms(noise)
        count = jnp.maximum(jnp.sum(honest), 1).astype(length.dtype)
        mean = jnp.sum(jnp.where(honest, length, 0)) / count
        size = factor * mean / jnp.where(own > 0, own, 1)
        return jax.tree.map(lambda x: trees.expand(size, x) * x, noise)

    return Attack(share=share, among=among, send=send)


@checked_options
def little_is_enough(*, share: float, z: float = 1.5, among: Among = "any") -> Attack:
    """Attackers send the honest mean less ``z`` deviations, number by number, all the same.

    Mean and deviation are over the honest clients of the round that train a number.

    Args:
      share: share of the clients.
      z: deviations; small enough to hide among honest clients.
      among: whom attackers are drawn from.

    Baruch et al., "A Little Is Enough", arXiv 1902.06156.
    """

    def leaf(d: Array, own: Array) -> Array:
        mean = _mean(d, own)
        square = _mean(jnp.square(d - mean[None]), own)
        return jnp.broadcast_to(mean - z * jnp.sqrt(square), d.shape)

    return Attack(share=share, among=among, send=_from_honest(leaf))


@checked_options
def inner_product(*, share: float, factor: float = 1.0, among: Among = "any") -> Attack:
    """Colluding attackers all send the opposite of the honest clients' mean change.

    Args:
      share: share of the clients.
      factor: length of the answer, in lengths of that mean.
      among: whom attackers are drawn from.

    Xie et al., "Fall of Empires", arXiv 1903.03936.
    """

    def leaf(d: Array, own: Array) -> Array:
        return jnp.broadcast_to(-factor * _mean(d, own), d.shape)

    return Attack(share=share, among=among, send=_from_honest(leaf))


@checked_options
def free_rider(*, share: float, among: Among = "any") -> Attack:
    """Attackers send back what they have received, and count like clients that have trained.

    Args:
      share: share of the clients.
      among: whom attackers are drawn from.

    Lin et al., "Free-riders in Federated Learning", arXiv 1911.12560.
    """

    def send(
        change: ClientParams, trainable: ClientParams, honest: Array, keys: Key
    ) -> ClientParams:
        return jax.tree.map(jnp.zeros_like, change)

    return Attack(share=share, among=among, send=send)


@checked_options
def inflated_counts(*, share: float, factor: float = 10.0, among: Among = "any") -> Attack:
    """Attackers say that they have more examples than they have; they train as all do.

    Args:
      share: share of the clients.
      factor: how many times as many.
      among: whom attackers are drawn from.
    """
    if not 0 < factor < math.inf:
        raise InputError(
            f"Fault 'inflated_counts' needs a factor above 0 and finite, got {factor}."
        )
    return Attack(share=share, among=among, count=factor)


def _mean(d: Array, own: Array) -> Array:
    """Mean over the clients in the mask, 0 where there is none."""
    count = jnp.maximum(jnp.sum(own, axis=0), 1).astype(d.dtype)
    return jnp.sum(jnp.where(own, d, 0), axis=0) / count


def _from_honest(leaf: Callable[[Array, Array], Array]) -> Send:
    """A message that is a statistic of the honest clients' changes, entry by entry.

    Args:
      leaf: ``(change, own) -> change``, where ``own`` says which honest client trains an entry.
    """

    def send(
        change: ClientParams, trainable: ClientParams, honest: Array, keys: Key
    ) -> ClientParams:
        def one(d: Array, mask: Array) -> Array:
            return leaf(d, jnp.broadcast_to(mask & trees.expand(honest, mask), d.shape))

        return jax.tree.map(one, change, trainable)

    return send
