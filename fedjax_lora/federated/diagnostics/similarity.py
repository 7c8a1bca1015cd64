"""Do modules of the same index come to mean the same on different clients?"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.types import Adapter, LoRA
from fedjax_lora.methods import ClientInit, Cohort


class Cosines(NamedTuple):
    """Mean cosines between one-rank modules of different clients; NaN without a pair."""

    same: Float[Array, ""]  # both are component j
    cross: Float[Array, ""]  # components j and j', j != j'


def module_cosines(cohort: Cohort, start: ClientInit, result: Adapter) -> Cosines:
    """Cosine similarity of the one-rank modules that different clients trained.

    The modules are compared as matrices, layer by layer; the cosine of two matrices ``x y^T`` and
    ``u v^T`` is ``cos(x, u) cos(y, v)``, so Gram matrices of the factors suffice. Means are over
    all pairs of present clients, of modules that both trained, and of layers. A module that is zero
    has no direction and is left out.

    Figure 2 of Zhang, Hu, Xu, "Fed-PLoRA", arXiv 2602.16936: during training the former grows, the
    latter stays low.

    Args:
      cohort: who is present.
      start: what was trained.
      result: adapters after training, ``[c, (L,) i, R]`` and ``[c, (L,) R, o]``.
    """
    present = cohort.weight > 0
    trains = lora.masked_components(start.trainable)

    def target(path: str) -> Array:
        a, b = result[path]
        trained = jnp.broadcast_to(trains[path], start.gain[path].shape)  # [c, (L,) R]
        trained &= trees.expand(present, trained)
        a, has_a = _unit(a, trained[..., None, :], axis=-2)
        b, has_b = _unit(b, trained[..., :, None], axis=-1)
        clients, most = trained.shape[0], trained.shape[-1]
        real = jnp.moveaxis(has_a[..., 0, :] & has_b[..., :, 0], 0, -2)  # [(L,) c, R]
        real = real.reshape(-1, clients * most)
        pair = linalg.stack(LoRA(a, b))
        cosine = linalg.matmul(pair.a.mT, pair.a) * linalg.matmul(pair.b, pair.b.mT)
        cosine = cosine.reshape(-1, *cosine.shape[-2:])  # [L, c*R, c*R]
        client = jnp.repeat(jnp.arange(clients), most)
        index = jnp.tile(jnp.arange(most), clients)
        both = real[:, :, None] & real[:, None, :] & (client[:, None] != client[None])[None]
        alike = (index[:, None] == index[None])[None]
        sums = [jnp.sum(jnp.where(both & of, cosine, 0.0)) for of in (alike, ~alike)]
        pairs = [jnp.sum(both & of).astype(jnp.float32) for of in (alike, ~alike)]
        return jnp.stack([jnp.stack(sums), jnp.stack(pairs)])

    sums, pairs = sum(map(target, result), start=jnp.zeros((2, 2)))
    return Cosines(*trees.safe_divide(sums, pairs, jnp.full(2, jnp.nan)))


def _unit(x: Array, mask: Array, *, axis: int) -> tuple[Array, Array]:
    """Vectors of length 1, or 0 where masked or zero; and which are not."""
    x = jnp.where(mask, x, 0.0)
    size = jnp.linalg.norm(x, axis=axis, keepdims=True)
    return x / jnp.where(size > 0, size, 1.0), size > 0
