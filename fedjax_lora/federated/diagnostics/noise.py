"""Initialization noise and aggregation noise of a round with mixed ranks, on effective weights.

Both are distances between models, ``||W - W'||_F`` over all adapted kernels together, so they do
not depend on how a method factorises its models. They are computed from factors
(`fedjax_lora.core.linalg.norm`): a difference of products is a product of stacked factors.

Zhang, Hu, Xu, "Fed-PLoRA", arXiv 2602.16936, name the noises; the norms and means are this
library's choice.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora import lora
from fedjax_lora.core import linalg
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Kernels, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import ClientInit, Cohort, ServerState, shares
from fedjax_lora.methods.averaging import Weights
from fedjax_lora.methods.base import per_client
from fedjax_lora.methods.svd import weighted_stack


class AggregationNoise(NamedTuple):
    """Distance of the server's new model from the ideal one, and the ideal change of the model."""

    noise: Array  # float32[], ||W_after - ideal||
    ideal: Array  # float32[], ||ideal - W_before||


def initialization_noise(
    spec: LoraSpec, server: ServerState, start: ClientInit, *, held: Kernels | None = None
) -> Float[Array, " c"]:
    """Distance between the server's model before the round and each client's start model.

    ``||s a b - g a_k b_k||_F`` with the server's and the client's gains `s` and `g`, computed as
    the product of ``[s (a - a_k), a_k]`` and ``[b; s (b - b_k) + (s - g) b_k]``. Each term contains
    a difference of stored values, so a client that starts at the server's factors has exactly 0.
    Base kernels cancel where a method that changes them sends them to every client.

    Args:
      spec: the adapted layers.
      server: the server state before the round.
      start: start parameters of the clients.
      held: the base kernels that clients have if they are not the server's.

    Returns:
      ``float32[c]``.
    """
    gain = lora.uniform_gain(spec)
    start_adapter = lora.fold(start.adapter, start.coefficients)

    def distance(path: str) -> Array:
        (a, b), s = per_client(server.adapter[path]), gain[path][None]  # [1, (L,) ...]
        (a_k, b_k), g = start_adapter[path], start.gain[path]  # [c, (L,) ...]
        left = s[..., None, :] * (a - a_k)
        right = s[..., :, None] * (b - b_k) + (s - g)[..., :, None] * b_k
        difference = LoRA(
            jnp.concatenate([left, a_k], axis=-1),
            jnp.concatenate([jnp.broadcast_to(b, b_k.shape), right], axis=-2),
        )
        if held is None:
            return linalg.norm(difference)
        return _dense_norm(linalg.matmul(*difference) + (_kernel(server, path) - held[path])[None])

    count = start.gain[spec.targets[0].path].shape[0]
    return _total_norm(distance(path).reshape(count, -1) for path in start.adapter)


@checked_options
def aggregation_noise(
    spec: LoraSpec,
    before: ServerState,
    cohort: Cohort,
    start: ClientInit,
    result: Adapter,
    after: ServerState,
    *,
    weights: Weights = "examples",
    held: Kernels | None = None,
) -> AggregationNoise:
    """Compute ``||W_after - sum_k p_k W_k||_F`` and ``||sum_k p_k W_k - W_before||_F``.

    ``W_k = W + gain_k a_k b_k`` is client `k`'s model after training. Kernels that a method changed
    are subtracted as they are stored, so the rounding of the server's addition is part of the
    noise. Both are 0 if no client is present.

    Args:
      spec: the adapted layers.
      before: the server state at the start of the round.
      cohort: absent clients (weight 0) have no influence, even if their values are not finite.
      start: start parameters of the clients.
      result: the clients' adapters after training, ``[c, (L,) i, R]`` and ``[c, (L,) R, o]``.
      after: the server state at the end of the round.
      weights: whether ``p_k`` is the share of examples, or equal for all clients.
      held: the base kernels that clients have if they are not the server's.
    """
    share = shares(cohort.weight, weights)
    gain = lora.uniform_gain(spec)

    def difference(mean: LoRA, server: ServerState, path: str) -> LoRA:
        """``mean - s a b`` as one product."""
        a, b = server.adapter[path]
        return LoRA(
            jnp.concatenate([mean.a, -a * gain[path][..., None, :]], axis=-1),
            jnp.concatenate([mean.b, b], axis=-2),
        )

    def distances(path: str) -> tuple[Array, Array]:
        mean = weighted_stack(result[path], start.gain[path], share)
        missed = difference(mean, after, path)
        moved = difference(mean, before, path)
        if path not in after.kernels:
            return linalg.norm(missed), linalg.norm(moved)
        own = _kernel(before, path) if held is None else held[path]
        noise = _dense_norm(_kernel(after, path) - own - linalg.matmul(*missed))
        if held is None:
            return noise, linalg.norm(moved)
        return noise, _dense_norm(own - _kernel(before, path) + linalg.matmul(*moved))

    noises, ideals = zip(*map(distances, result), strict=True)
    any_present = jnp.any(cohort.weight > 0)
    return AggregationNoise(
        *(
            jnp.where(any_present, _total_norm(norm.reshape(1, -1) for norm in norms)[0], 0.0)
            for norms in (noises, ideals)
        )
    )


def _kernel(server: ServerState, path: str) -> Array:
    return server.kernels[path].astype(jnp.float32)


def _dense_norm(matrix: Float[Array, "*batch i o"]) -> Float[Array, "*batch"]:
    return jnp.sqrt(jnp.sum(jnp.square(matrix), axis=(-2, -1)))


def _total_norm(norms: Iterable[Float[Array, "c _"]]) -> Float[Array, " c"]:
    """Norm over all adapted layers, from the norms of the single layers."""
    return jnp.linalg.norm(jnp.concatenate(list(norms), axis=1), axis=1)
