"""Similarity of the rank-one components that different clients train."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.types import Adapter, LoRA
from fedjax_lora.methods import ClientInit, Cohort


class Cosines(NamedTuple):
    """Mean cosines between rank-one components of different clients; NaN without a pair."""

    same: Float[Array, ""]  # pairs of component j with component j
    cross: Float[Array, ""]  # pairs of components j and j', j != j'


def module_cosines(cohort: Cohort, start: ClientInit, result: Adapter) -> Cosines:
    """Cosine similarity of the rank-one components that different clients trained.

    Components are compared as matrices, layer by layer. The cosine of two matrices ``x y^T`` and
    ``u v^T`` is ``cos(x, u) cos(y, v)``, so Gram matrices of the factors suffice. Means are over
    all pairs of present clients, all components that both trained, and all layers. A component that
    is zero has no direction and is left out.

    Figure 2 of Zhang, Hu, Xu, "Fed-PLoRA", arXiv 2602.16936: during training ``same`` grows and
    ``cross`` stays low.

    Args:
      cohort: clients with weight 0 are absent and left out.
      start: its masks say which components were trained.
      result: adapters after training, ``[c, (L,) i, R]`` and ``[c, (L,) R, o]``.
    """
    present = cohort.weight > 0
    trains = lora.masked_components(start.trainable, start.trained_coefficients)

    def cosine_sums(path: str) -> Array:
        a, b = result[path]
        trained = jnp.broadcast_to(trains[path], start.gain[path].shape)  # [c, (L,) R]
        trained &= trees.expand(present, trained)
        a, has_a = _unit(a, trained[..., None, :], axis=-2)
        b, has_b = _unit(b, trained[..., :, None], axis=-1)
        clients, rank = trained.shape[0], trained.shape[-1]
        nonzero = jnp.moveaxis(has_a[..., 0, :] & has_b[..., :, 0], 0, -2)  # [(L,) c, R]
        nonzero = nonzero.reshape(-1, clients * rank)
        pair = linalg.stack(LoRA(a, b))
        cosine = linalg.matmul(pair.a.mT, pair.a) * linalg.matmul(pair.b, pair.b.mT)
        cosine = cosine.reshape(-1, *cosine.shape[-2:])  # [L, c*R, c*R]
        client = jnp.repeat(jnp.arange(clients), rank)
        index = jnp.tile(jnp.arange(rank), clients)
        other_client = (client[:, None] != client[None])[None]
        compared = nonzero[:, :, None] & nonzero[:, None, :] & other_client
        same = (index[:, None] == index[None])[None]
        sums = [jnp.sum(jnp.where(compared & kind, cosine, 0.0)) for kind in (same, ~same)]
        pairs = [jnp.sum(compared & kind).astype(jnp.float32) for kind in (same, ~same)]
        return jnp.stack([jnp.stack(sums), jnp.stack(pairs)])

    sums, pairs = sum(map(cosine_sums, result), start=jnp.zeros((2, 2)))
    return Cosines(*trees.safe_divide(sums, pairs, jnp.full(2, jnp.nan)))


def _unit(x: Array, mask: Array, *, axis: int) -> tuple[Array, Array]:
    """Normalise vectors to length 1, or 0 if masked or zero; also return which are not 0."""
    x = jnp.where(mask, x, 0.0)
    length = jnp.linalg.norm(x, axis=axis, keepdims=True)
    return x / jnp.where(length > 0, length, 1.0), length > 0
