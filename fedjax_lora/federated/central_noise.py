"""Noise that a trusted server adds once to the mean, in place of the clients' own.

The aggregate of an averaging method is linear in the messages: component `j` changes by
``share[k, j]`` times the change of client `k`, where shares follow from weights, ranks and masks,
which count as public. Replacing the data of one client moves its clipped change by at most twice
``norm``, and so the aggregate, adapter and head together, by at most ``2 * norm * max share``.
Normal noise of deviation ``multiplier * norm * max share`` on every number that any client has a
share in is therefore the Gaussian mechanism with the same multiplier as that of the clients' own
noise, and the same epsilon, against those who see the models; the server sees the messages. For
`K` equal clients the largest share is ``1 / K``, and the mean has ``1 / sqrt(K)`` of the noise that
it has where each client adds its own.
A component that a single client owns has share 1, so that mixed ranks cost more noise in a masked
mean than in zero padding, which divides by all clients.

Shares are found by trying the aggregation with one client's ones at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_lora.core import trees
from fedjax_lora.core.types import Adapter, Array, ClientParams, Key
from fedjax_lora.methods.base import Cohort


def shares(
    aggregate: Callable[[Adapter], Adapter], start: Adapter, sends: Adapter, weight: Array
) -> tuple[Array, Adapter]:
    """Return the largest share of any present client, and which numbers anybody has a share in.

    Args:
      aggregate: from the clients' adapters ``[c, ...]`` to the server's, linear.
      start: adapters before training.
      sends: what each client trains and sends, booleans that broadcast against them.
      weight: 0 for absent clients.
    """
    nothing = aggregate(start)

    def of(k: Array) -> tuple[Array, Adapter]:
        mine = (jnp.arange(weight.shape[0]) == k) & (weight > 0)

        def one(x: Array, m: Array) -> Array:
            return x + jnp.where(m & trees.expand(mine, x), 1.0, 0.0)

        moved = aggregate(jax.tree.map(one, start, sends))
        share = jax.tree.map(lambda x, y: jnp.abs(x - y), moved, nothing)
        largest = jnp.max(jnp.stack([jnp.max(x) for x in jax.tree.leaves(share)]))
        return largest, jax.tree.map(lambda x: x > 1e-6, share)

    largest, touched = jax.lax.map(of, jnp.arange(weight.shape[0]))
    return jnp.max(largest), jax.tree.map(lambda x: jnp.any(x, axis=0), touched)


def noised(
    mean: ClientParams, deviation: float, largest: Array, touched: Adapter, cohort: Cohort, key: Key
) -> ClientParams:
    """Add noise to a mean.

    Args:
      mean: the adapter and the head after the aggregation; a head that is not averaged is ``{}``.
      deviation: of the noise for a share of 1.
      largest: the largest share of a client in a component.
      touched: which numbers of the adapter anybody has a share in.
      cohort: the clients; without any that are present, nothing is added.
      key: of the noise.
    """
    present = jnp.any(cohort.weight > 0)
    total = jnp.maximum(jnp.sum(cohort.weight), jnp.finfo(jnp.float32).tiny)
    share = jnp.maximum(largest, jnp.max(cohort.weight) / total) if mean.head else largest
    size = jnp.where(present, deviation * share, 0.0)
    everywhere = jax.tree.map(lambda x: jnp.ones(x.shape, bool), mean.head)
    leaves, structure = jax.tree.flatten(mean)
    masks = jax.tree.leaves(ClientParams(touched, everywhere))
    return structure.unflatten(
        [
            x + jnp.where(mask & present, size, 0.0) * jax.random.normal(own, x.shape, x.dtype)
            for x, mask, own in zip(leaves, masks, jax.random.split(key, len(leaves)), strict=True)
        ]
    )
