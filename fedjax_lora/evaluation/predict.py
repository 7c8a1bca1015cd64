"""Predictions of a model with an adapter over a data set."""

from collections.abc import Callable, Iterator, Sequence
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


LEVELS = 32
"""Numbers of tokens of a batch that are told apart."""

Predict = Callable[[AdaptedParams, Any], np.ndarray]
"""``(params, data) -> float32[E, C]``: the outputs for every example, in the order of the data."""


def make_predict(objective: Objective, *, batch: int, mesh: Mesh | None = None) -> Predict:
    """Build a prediction function, compiled once per padded length.

    Where the objective can leave out padding, a batch has about as many tokens as any other with
    its padded length, and computes no more. Otherwise examples are sorted by length, so that
    batches hold little padding. The outputs are in the order of the data.

    Args:
      objective: computes the outputs of a batch.
      batch: examples predicted at once, rounded up to a multiple of the mesh's axis. A smaller
        data set is one batch of its own size.
      mesh: mesh over whose axis ``clients`` the rows of a batch are divided; None for one device.

    Returns:
      A function ``(params, data) -> float32[E, C]``.
    """
    shardings: dict[str, Any] = {} if mesh is None else {"out_shardings": everywhere(mesh)}

    unpad = objective.unpad if mesh is None else None  # tokens are not divided over devices

    @jax.jit(static_argnames=("length", "tokens"), **shardings)
    def outputs(params, data, index, valid, *, length, tokens):
        if mesh is not None:
            rows = NamedSharding(mesh, PartitionSpec(AXIS))
            index = jax.lax.with_sharding_constraint(index, rows)
        examples = objective.take(data, index, length)
        if unpad is not None:
            examples = unpad(examples, valid, tokens)
        return objective.outputs(params.base, params.trained, params.gain, examples)

    def predict(params: AdaptedParams, data: Any) -> np.ndarray:
        length = np.asarray(data.length)
        # Evaluation data may hold an example that is longer than every length of the training.
        lengths = (*objective.lengths, int(length.max()))
        size = _batch_rows(batch, len(length), mesh)
        made = (_by_length if unpad is None else _by_tokens)(length, lengths, size)
        batches = []
        for rows, padded, tokens in made:
            index = np.resize(rows, size).astype(np.int32)  # a short batch repeats its rows
            valid = np.arange(size) < len(rows)
            output = outputs(params, data, index, valid, length=padded, tokens=tokens)
            batches.append((rows, output))
        return _in_order(batches, len(length))

    return predict


_Batch = tuple[np.ndarray, int, int]
"""Row numbers, the length that they are padded to, and their tokens at most."""


def _by_length(length: np.ndarray, lengths: Sequence[int], size: int) -> Iterator[_Batch]:
    """Yield batches of examples of about the same length, whose padding is computed."""
    order = np.argsort(length, kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        bucket = int(np.searchsorted(lengths[:-1], length[rows].max()))
        yield rows, lengths[bucket], size * lengths[bucket]


def _by_tokens(length: np.ndarray, lengths: Sequence[int], size: int) -> Iterator[_Batch]:
    """Yield batches of equal shape for each of the lengths, with about equally many tokens."""
    order = np.argsort(length, kind="stable")
    bucket = np.searchsorted(lengths[:-1], length[order])
    for number in np.unique(bucket):
        own, padded = order[bucket == number], lengths[number]
        count = -(-len(own) // size)
        batches = [own[n::count] for n in range(count)]  # each has short and long texts
        most = max(int(length[rows].sum()) for rows in batches)
        # Coarse, so that other examples of the task have the same shape and share the program.
        step = max(8, size * padded // LEVELS)
        tokens = min(-(-most // step) * step, size * padded)
        yield from ((rows, padded, tokens) for rows in batches)


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
