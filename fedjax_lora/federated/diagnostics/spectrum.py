"""The spectrum of what training has added to the model: does it use the ranks it has?

*Rank collapse*: where a component is trained by few clients and normalised by all, its energy
shrinks round by round until the global update has the rank of the weakest client (raFLoRA,
arXiv 2602.13486).
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.types import Kernels, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import ServerState

Spectrum = Mapping[str, Array]
"""Singular values by path, ``[(L,) m]``, descending."""


def delta_spectrum(spec: LoraSpec, server: ServerState, base: Kernels) -> dict[str, Array]:
    """Singular values of the global delta, adapter and changed kernels together.

    Args:
      spec: the sites.
      server: the model.
      base: the kernels the run began with, at the sites whose kernels the method changes.

    Returns:
      Per path ``[(L,) m]``; ``m`` is `R`, or ``min(i, o)`` where kernels were changed or `R` is as
      large. Layers that are left out have zeros.
    """
    gain = lora.uniform_gain(spec)

    def target(path: str) -> Array:
        a, b = server.adapter[path]
        pair = LoRA(a * gain[path][..., None, :], b)
        if path not in server.kernels:
            return linalg.singular_values(linalg.core(pair))
        new, old = (x[path].astype(jnp.float32) for x in (server.kernels, base))
        return linalg.singular_values(new - old + linalg.matmul(*pair))

    return {path: target(path) for path in server.adapter}


def energy_beyond(found: Spectrum, ranks: Sequence[int]) -> Float[Array, "_"]:
    """The share of the energy, over all layers, that the best approximation of each rank misses.

    ``sum_{j > r} s_j^2 / sum_j s_j^2``; 0 if there is no energy.
    """

    def beyond(rank: int) -> Array:
        each = (jnp.sum(jnp.square(values[..., rank:])) for values in found.values())
        return sum(each, start=jnp.zeros(()))

    tails = jnp.stack([beyond(rank) for rank in ranks])
    return trees.safe_divide(tails, jnp.broadcast_to(beyond(0), tails.shape), jnp.zeros_like(tails))


def stable_rank(values: Float[Array, "*batch m"]) -> Float[Array, "*batch"]:
    """``||W||_F^2 / ||W||_2^2`` of each layer, from 1 to its rank; 0 of a zero matrix."""
    squares = jnp.square(values)
    most = jnp.max(squares, axis=-1)
    return trees.safe_divide(jnp.sum(squares, axis=-1), most, jnp.zeros_like(most))


def effective_rank(values: Float[Array, "*batch m"]) -> Float[Array, "*batch"]:
    """The exponential of the entropy of ``s_j / sum_j s_j``; 0 of a zero matrix.

    Roy & Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    total = jnp.sum(values, axis=-1)
    share = trees.safe_divide(values, jnp.broadcast_to(total[..., None], values.shape), values)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)), axis=-1)
    return jnp.where(total > 0, jnp.exp(entropy), 0.0)


def layer_mean(found: Spectrum, each: Mapping[str, Array]) -> Float[Array, ""]:
    """The mean of a number per layer, ``[(L,)]`` per path, over the layers with any energy."""
    used = jnp.concatenate([jnp.max(s, axis=-1).ravel() > 0 for s in found.values()])
    numbers = jnp.concatenate([each[path].ravel() for path in found])
    return trees.weighted_mean(numbers, used.astype(numbers.dtype), jnp.zeros(()))
