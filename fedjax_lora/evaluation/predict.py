"""Predictions of a model with an adapter over a data set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_lora.core.types import ClientParams, Gain, Params
from fedjax_lora.federated.objectives import Objective
from fedjax_lora.federated.sharding import AXIS, everywhere

__all__ = ["AdaptedParams", "Predict", "make_predict"]


class AdaptedParams(NamedTuple):
    """All parameters of a model with an adapter, as predictions take them.

    Attributes:
      base: parameters of the base model without a head.
      trained: adapter and head.
      gain: multiplier of each component by path, ``[(L,) R]``.
    """

    base: Params
    trained: ClientParams
    gain: Gain


Predict = Callable[[AdaptedParams, Any], np.ndarray]
"""``(params, data) -> float32[E, C]``: the outputs for every example, in the order of the data."""


def make_predict(objective: Objective, *, batch: int, mesh: Mesh | None = None) -> Predict:
    """Build a prediction function, compiled once per padded length.

    Examples are sorted by length, so that batches hold little padding. The outputs are in the
    order of the data.

    Args:
      objective: computes the outputs of a batch.
      batch: examples predicted at once, rounded up to a multiple of the mesh's axis. A smaller
        data set is one batch of its own size.
      mesh: mesh over whose axis ``clients`` the rows of a batch are divided; None for one device.

    Returns:
      A function ``(params, data) -> float32[E, C]``.
    """
    shardings: dict[str, Any] = {} if mesh is None else {"out_shardings": everywhere(mesh)}

    @jax.jit(static_argnames="length", **shardings)
    def outputs(params, data, index, *, length):
        if mesh is not None:
            rows = NamedSharding(mesh, PartitionSpec(AXIS))
            index = jax.lax.with_sharding_constraint(index, rows)
        examples = objective.take(data, index, length)
        return objective.outputs(params.base, params.trained, params.gain, examples)

    def predict(params: AdaptedParams, data: Any) -> np.ndarray:
        length = np.asarray(data.length)
        # Evaluation data may hold an example that is longer than every length of the training.
        lengths = (*objective.lengths, int(length.max()))
        order = np.argsort(length, kind="stable")
        size = _batch_rows(batch, len(order), mesh)
        batches = []
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            bucket = int(np.searchsorted(objective.lengths, length[rows].max()))
            index = np.resize(rows, size).astype(np.int32)  # a short last batch repeats its rows
            batches.append((rows, outputs(params, data, index, length=lengths[bucket])))
        return _in_order(batches, len(order))

    return predict


def _batch_rows(batch: int, examples: int, mesh: Mesh | None) -> int:
    """Number of rows of a batch: a multiple of the number of devices along the mesh's axis."""
    rows = min(batch, examples)
    return rows if mesh is None else rows + -rows % mesh.shape[AXIS]


def _in_order(batches: list[tuple[np.ndarray, jax.Array]], examples: int) -> np.ndarray:
    """Gather the outputs of batches by row number; rows beyond those of a batch are padding."""
    first = np.asarray(batches[0][1])
    result = np.zeros((examples, *first.shape[1:]), first.dtype)
    for rows, output in batches:
        result[rows] = np.asarray(output)[: len(rows)]
    return result
