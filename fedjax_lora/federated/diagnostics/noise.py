"""The two noises of a heterogeneous round, on effective weights.

Both are distances between models, ``||W - W'||_F`` over all adapted kernels together, so they do
not depend on how a method writes its models down. They come from factors (`lowrank.norm`): a
difference of products is the product of two stacks.

Zhang, Hu, Xu, "Fed-PLoRA", arXiv 2602.16936, name the noises; norms and means are ours.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora import lora
from fedjax_lora.core import linalg
from fedjax_lora.core.types import Adapter, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import ClientInit, Cohort, ServerState, shares
from fedjax_lora.methods.averaging import Weights
from fedjax_lora.methods.base import per_client
from fedjax_lora.methods.svd import weighted_stack


class AggregationNoise(NamedTuple):
    """How far the server's new model is from the ideal one, and how far that one moved."""

    noise: Array  # float32[], ||W_after - ideal||
    ideal: Array  # float32[], ||ideal - W_before||


def initialization_noise(
    spec: LoraSpec, server: ServerState, start: ClientInit
) -> Float[Array, "c"]:
    """Distance between the server's model before the round and what each client starts from.

    ``||s a b - g a_k b_k||_F`` with the server's and the client's gains, written as the product of
    ``[s (a - a_k), a_k]`` and ``[b; s (b - b_k) + (s - g) b_k]``: every term holds a difference of
    values as they are, so a client that starts at the server's factors has exactly 0. Base kernels
    drop out, since a method that changes them hands them to every client.
    """
    gain = lora.uniform_gain(spec)
    begun = lora.fold(start.adapter, start.coefficients)

    def target(path: str) -> Array:
        (a, b), s = per_client(server.adapter[path]), gain[path][None]  # [1, (L,) ...]
        (a_k, b_k), g = begun[path], start.gain[path]  # [c, (L,) ...]
        left = s[..., None, :] * (a - a_k)
        right = s[..., :, None] * (b - b_k) + (s - g)[..., :, None] * b_k
        return linalg.norm(
            LoRA(
                jnp.concatenate([left, a_k], axis=-1),
                jnp.concatenate([jnp.broadcast_to(b, b_k.shape), right], axis=-2),
            )
        )

    count = start.gain[spec.targets[0].path].shape[0]
    return _together(target(path).reshape(count, -1) for path in start.adapter)


def aggregation_noise(
    spec: LoraSpec,
    before: ServerState,
    cohort: Cohort,
    start: ClientInit,
    result: Adapter,
    after: ServerState,
    *,
    weights: Weights = "examples",
) -> AggregationNoise:
    """``||W_after - sum_k p_k W_k||_F`` and ``||sum_k p_k W_k - W_before||_F``, both float32[].

    ``W_k = W + gain_k a_k b_k`` is client `k`'s model after training. Kernels that a method changed
    are subtracted as they are stored, so the rounding of the server's addition is part of the
    noise. Both are 0 if nobody is present.

    Args:
      spec: the sites.
      before: the server at the start of the round.
      cohort: absent clients (weight 0) have no influence, even if they are not finite.
      start: what the clients started from.
      result: their adapters after training, ``[c, (L,) i, R]`` and ``[c, (L,) R, o]``.
      after: the server at the end of the round.
      weights: ``p_k`` by number of examples, or equal.
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

    def target(path: str) -> tuple[Array, Array]:
        mean = weighted_stack(result[path], start.gain[path], share)
        missed = difference(mean, after, path)
        if path in after.kernels:
            new, old = (s.kernels[path].astype(jnp.float32) for s in (after, before))
            noise = jnp.sqrt(jnp.sum(jnp.square(new - old - linalg.matmul(*missed))))
        else:
            noise = linalg.norm(missed)
        return noise, linalg.norm(difference(mean, before, path))

    noises, ideals = zip(*map(target, result), strict=True)
    somebody = jnp.any(cohort.weight > 0)
    return AggregationNoise(
        *(
            jnp.where(somebody, _together(norm.reshape(1, -1) for norm in norms)[0], 0.0)
            for norms in (noises, ideals)
        )
    )


def _together(norms: Iterable[Float[Array, "c _"]]) -> Float[Array, "c"]:
    """The norm over all sites and layers from those of each."""
    return jnp.linalg.norm(jnp.concatenate(list(norms), axis=1), axis=1)
