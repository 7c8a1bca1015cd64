"""Singular values of the global delta, the change of the model since the start of training.

They show how much of the rank is used. *Rank collapse*: where a component is trained by few clients
and averaged over all, its energy shrinks round by round until the global update has the rank of the
weakest client (raFLoRA, arXiv 2602.13486).
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
      spec: the adapted layers.
      server: the server state.
      base: the kernels at the start of the run, for the layers whose kernels the method changes.

    Returns:
      Per path ``[(L,) m]``; ``m`` is `R`, or ``min(i, o)`` where kernels were changed or `R` is at
      least that large. Layers that are not adapted have zeros.
    """
    gain = lora.uniform_gain(spec)

    def layer_values(path: str) -> Array:
        a, b = server.adapter[path]
        pair = LoRA(a * gain[path][..., None, :], b)
        if path not in server.kernels:
            return linalg.singular_values(linalg.core(pair))
        new, old = (x[path].astype(jnp.float32) for x in (server.kernels, base))
        return linalg.singular_values(new - old + linalg.matmul(*pair))

    return {path: layer_values(path) for path in server.adapter}


def energy_beyond(spectrum: Spectrum, ranks: Sequence[int]) -> Float[Array, " _"]:
    """Share of the energy, over all layers, that the best approximation of each rank misses.

    ``sum_{j > r} s_j^2 / sum_j s_j^2``; 0 if there is no energy.

    Args:
      spectrum: from `delta_spectrum`.
      ranks: the ranks `r`.
    """

    def beyond(rank: int) -> Array:
        tails = (jnp.sum(jnp.square(values[..., rank:])) for values in spectrum.values())
        return sum(tails, start=jnp.zeros(()))

    tails = jnp.stack([beyond(rank) for rank in ranks])
    return trees.safe_divide(tails, jnp.broadcast_to(beyond(0), tails.shape), jnp.zeros_like(tails))


def stable_rank(values: Float[Array, "*batch m"]) -> Float[Array, "*batch"]:
    """Stable rank ``||W||_F^2 / ||W||_2^2`` of each layer, between 1 and its rank; 0 if W is 0."""
    squares = jnp.square(values)
    largest = jnp.max(squares, axis=-1)
    return trees.safe_divide(jnp.sum(squares, axis=-1), largest, jnp.zeros_like(largest))


def effective_rank(values: Float[Array, "*batch m"]) -> Float[Array, "*batch"]:
    """Effective rank: the exponential of the entropy of ``s_j / sum_j s_j``; 0 for a zero matrix.

    Roy & Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    total = jnp.sum(values, axis=-1)
    share = trees.safe_divide(values, jnp.broadcast_to(total[..., None], values.shape), values)
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)), axis=-1)
    return jnp.where(total > 0, jnp.exp(entropy), 0.0)


def layer_mean(spectrum: Spectrum, values: Mapping[str, Array]) -> Float[Array, ""]:
    """Mean of one value per layer, ``[(L,)]`` per path, over the layers that have any energy."""
    used = jnp.concatenate([jnp.max(s, axis=-1).ravel() > 0 for s in spectrum.values()])
    numbers = jnp.concatenate([values[path].ravel() for path in spectrum])
    return trees.weighted_mean(numbers, used.astype(numbers.dtype), jnp.zeros(()))
