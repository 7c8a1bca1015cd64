"""Predictions of a global model over a data set, padded to as few lengths as training uses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_lora.core.types import ClientParams, Gain, Params
from fedjax_lora.federated.objectives import Objective
from fedjax_lora.federated.sharding import AXIS, everywhere

Predict = Callable[[Params, Any, ClientParams, Gain], np.ndarray]


def make_predict(objective: Objective, *, batch: int, mesh: Mesh | None = None) -> Predict:
    """A function ``(base, data, trained, gain) -> float32[E, C]``, one compilation per length.

    Examples are sorted by length, so that a batch holds little padding; the result is in the order
    of the data.

    Args:
      objective: the task.
      batch: examples predicted at once, or a few more, so that a mesh divides them. Data with
        fewer examples are one batch (of another size of the data another program is compiled in
        any case).
      mesh: over whose axis ``clients`` they are spread.
    """
    placed = {} if mesh is None else {"out_shardings": everywhere(mesh)}

    def rows_of(examples: int) -> int:
        """How many rows a batch of a data set has."""
        rows = min(batch, examples)
        return rows if mesh is None else rows + -rows % mesh.shape[AXIS]

    @jax.jit(static_argnames="length", **placed)
    def outputs(base, data, trained, gain, index, *, length):
        if mesh is not None:
            rows = NamedSharding(mesh, PartitionSpec(AXIS))
            index = jax.lax.with_sharding_constraint(index, rows)
        return objective.outputs(base, trained, gain, objective.take(data, index, length))

    def predict(base: Params, data: Any, trained: ClientParams, gain: Gain) -> np.ndarray:
        length = np.asarray(data.length)
        # Of data that training has never seen, the longest may fit into none of its lengths.
        sizes = (*objective.lengths, int(length.max()))
        order = np.argsort(length, kind="stable")
        parts, size = [], rows_of(len(order))
        for at in range(0, len(order), size):
            rows = order[at : at + size]
            fits = int(np.searchsorted(objective.lengths, length[rows].max()))
            index = np.resize(rows, size).astype(np.int32)  # a short last batch repeats its rows
            out = outputs(base, data, trained, gain, index, length=sizes[fits])
            parts.append((rows, out))
        first = np.asarray(parts[0][1])
        result = np.zeros((len(order), *first.shape[1:]), first.dtype)
        for rows, out in parts:
            result[rows] = np.asarray(out)[: len(rows)]
        return result

    return predict


class Global(NamedTuple):
    """A global model, as predictions take it."""

    base: Params
    trained: ClientParams
    gain: Gain
