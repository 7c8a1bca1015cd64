"""Update compression: quantised updates and their uplink bytes.

The server knows every client's start parameters, so clients quantise and send the difference.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core import trees
from fedjax_lora.core.types import Array, ClientParams, Key, Params
from fedjax_lora.federated.transforms.base import (
    UpdateTransform,
    changed_by,
    changes,
    draw,
    float32_bytes,
)
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.base import FLOAT_BYTES, Traffic

LEVELS = 127
"""The largest magnitude of a symmetric 8-bit integer."""


def int8() -> UpdateTransform:
    """Quantise updates to 8-bit integers by unbiased stochastic rounding, one scale per matrix.

    For a matrix `d` (one factor of one layer, or one array of the head) with
    ``s = max |d| / 127``, each entry of ``d / s`` is rounded up with the probability of its
    fractional part, else down: the expectation is `d`, and the error is below `s`. A client sends
    one byte per number and four per matrix.

    The stochastic quantisation of QSGD, Alistarh et al., arXiv 1610.02132, with evenly spaced
    levels up to the largest entry.
    """

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        change = changes(start, trained, trainable)
        chance = draw(jax.random.uniform, key, change)
        rounded = jax.tree.map(_round, change, largest(change), chance)
        return changed_by(start, trained, trainable, rounded), weight

    return UpdateTransform(
        apply=apply, stage="wire", uplink_bytes=lambda numbers, matrices: numbers + 4 * matrices
    )


def largest(change: ClientParams) -> ClientParams:
    """Largest magnitude in each factor of a layer and each array of the head, axes kept as 1."""

    def top(x: Array, axes: tuple[int, ...]) -> Array:
        return jnp.max(jnp.abs(x), axis=axes, keepdims=True)

    return ClientParams(
        jax.tree.map(lambda x: top(x, (-2, -1)), change.adapter),
        jax.tree.map(lambda x: top(x, tuple(range(1, x.ndim))), change.head),
        {
            path: top(x, (-2, -1) if x.ndim == change.adapter[path].a.ndim else (-1,))
            for path, x in change.coefficients.items()
        }
        if change.coefficients
        else (),
    )


def _round(x: Array, top: Array, chance: Array) -> Array:
    unit = top / LEVELS
    level = trees.safe_divide(x, unit, jnp.zeros(()))
    below = jnp.floor(level)
    rounded = below + jnp.where(chance < level - below, 1.0, 0.0)
    # Rounding of the division may make the largest entry a little more than 127.
    return unit * jnp.clip(rounded, -LEVELS, LEVELS)


def bfloat16() -> UpdateTransform:
    """Round updates to the nearest bfloat16; a client sends two bytes per number."""

    def apply(
        start: ClientParams, trained: ClientParams, trainable: ClientParams, weight: Array, key: Key
    ) -> tuple[ClientParams, Array]:
        # A compiler may remove a pair of casts, but not `reduce_precision`.
        near = jax.tree.map(
            lambda d: jax.lax.reduce_precision(d, exponent_bits=8, mantissa_bits=7),
            changes(start, trained, trainable),
        )
        return changed_by(start, trained, trainable, near), weight

    return UpdateTransform(
        apply=apply, stage="wire", uplink_bytes=lambda numbers, matrices: 2 * numbers
    )


def uplink_bytes(
    updates: Sequence[UpdateTransform], traffic: Traffic, spec: LoraSpec, head: Params
) -> np.ndarray:
    """Bytes that every client sends for adapter and head, computed on the host: ``int64[c]``.

    Args:
      updates: update transforms of the round.
      traffic: traffic of the method, in float32.
      spec: the adapted layers.
      head: the head that is sent, or ``{}``.
    """
    leaves = jax.tree.leaves(head)
    numbers = (traffic.up - traffic.exact) // FLOAT_BYTES + sum(x.size for x in leaves)
    matrices = traffic.factors * spec.matrices + len(leaves)
    on_wire = next(
        (update.uplink_bytes for update in updates if update.stage == "wire"), float32_bytes
    )
    return on_wire(numbers, matrices) + traffic.exact
