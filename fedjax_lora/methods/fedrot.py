"""FedRot-LoRA: each client's factors are rotated onto the server's before they are averaged."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from fedjax_lora import lora
from fedjax_lora.core import linalg, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Array, LoRA
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.averaging import Weights, masked_mean
from fedjax_lora.methods.base import AggregateResult, ClientInit, Cohort, Method, ServerState

Align = Literal["alternate", "a", "b"]


@checked_options
def fedrot_lora(
    spec: LoraSpec,
    *,
    align: Align = "alternate",
    strength: float = 1.0,
    weights: Weights = "examples",
) -> Method:
    """FedRot-LoRA: factors rotated onto those that clients began with, then averaged.

    ``(a_k Q_k)(Q_k^T b_k) = a_k b_k`` for any rotation `Q_k`, and averages of factors depend on it.
    Client `k` takes the rotation that brings ``a_k Q_k`` nearest to its first ``a`` (or
    ``Q_k^T b_k`` to its first ``b``), the proper one of the orthogonal Procrustes problem, before
    each component is averaged over its owners. The client's model is the same, only what the mean
    of factors misses of the mean of products becomes smaller.

    The paper's clients have one rank. A client of rank `r` here rotates its `r` components among
    themselves; other clients' further components are not its.

    Args:
      spec: the adapted layers.
      align: which factor is brought near: ``b`` in even and ``a`` in odd rounds, as in the released
        code, or always one. Where the factor to be met is zero, ``b`` in the first round, nothing
        is rotated, as in the code.
      strength: 1 rotates fully; below, the rotation that is nearest to ``(1 - strength) I +
        strength Q``, the soft one of the released code.
      weights: of the means.

    Zhang et al., "FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA",
    arXiv 2602.23638, code haoran-zh/FedRot-LoRA.

    Raises:
      InputError: a strength outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise InputError(f"Method 'fedrot_lora' needs a strength in (0, 1], got {strength}.")
    mean = masked_mean(spec, weights=weights)

    def aggregate(
        server: ServerState, clients: Any, cohort: Cohort, start: ClientInit, result: Adapter
    ) -> AggregateResult:
        in_b = {"alternate": cohort.round % 2 == 0, "a": False, "b": True}[align]
        own = lora.prefix_mask(cohort.rank, spec.rank) & (cohort.weight > 0)[:, None]
        rotated = {
            path: rotate(pair, start.adapter[path], own, jnp.asarray(in_b), strength)
            for path, pair in result.items()
        }
        return mean.aggregate(server, clients, cohort, start, rotated)

    return dataclasses.replace(
        mean,
        name="fedrot_lora",
        paper="arXiv 2602.23638",
        aggregate=aggregate,
        averages=False,  # of what the server has rotated
        late=(),
    )


def rotate(pair: LoRA, target: LoRA, own: Array, in_b: Array, strength: float) -> LoRA:
    """Rotate one layer's factors towards a target.

    Args:
      pair: ``[c, (L,) i, R]`` and ``[c, (L,) R, o]``.
      target: of the same shapes.
      own: the components to be rotated, ``bool[c, R]``; the others keep their values.
      in_b: whether `b` is brought near its target, else `a`.
      strength: see `fedrot_lora`.
    """
    by_a = linalg.matmul(pair.a.mT, target.a)
    by_b = linalg.matmul(pair.b, target.b.mT)
    both = own[:, :, None] & own[:, None, :]
    overlap = jnp.where(_with_layers(both, by_a), jnp.where(in_b, by_b, by_a), 0.0)
    size = jnp.sqrt(jnp.sum(jnp.square(overlap), axis=(-2, -1), keepdims=True))
    # Other components stay themselves: as the largest singular values they are never turned round.
    unit = jnp.eye(own.shape[-1]).reshape((1,) * (overlap.ndim - 2) + both.shape[1:])
    fixed = jnp.where(_with_layers(both, overlap), 0.0, unit)
    whole = trees.safe_divide(overlap, size, unit) + 2 * fixed
    turn = linalg.nearest_orthogonal(whole, proper=True)
    if strength < 1:
        turn = linalg.nearest_orthogonal((1 - strength) * unit + strength * turn)
    return LoRA(linalg.matmul(pair.a, turn), linalg.matmul(turn.mT, pair.b))


def _with_layers(mask: Array, like: Array) -> Array:
    """A mask ``[c, R, R]`` with axes of one for layers, to go with ``[c, (L,) R, R]``."""
    return mask.reshape(mask.shape[0], *(1,) * (like.ndim - 3), *mask.shape[1:])
