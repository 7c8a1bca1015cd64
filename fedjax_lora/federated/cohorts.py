"""The clients of a round, and the examples they train on, for a loop of your own."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Batches, PyTree
from fedjax_lora.federated.state import Plan, RoundInput


def cohort(
    ids: Sequence[int] | np.ndarray,
    ranks: int | Sequence[int] | np.ndarray,
    weights: float | Sequence[float] | np.ndarray,
    batches: PyTree,
    *,
    round: int,
    data: PyTree = None,
    valid: ArrayLike | None = None,
    rate: float = 1.0,
    attackers: Sequence[ArrayLike] = (),
    staleness: ArrayLike | None = None,
) -> RoundInput:
    """The clients of a round, and the examples of each of their local steps.

    >>> batches = {"x": np.zeros((2, 5, 8, 3)), "y": np.zeros((2, 5, 8))}
    >>> cohort([7, 3], ranks=[4, 8], weights=[40, 40], batches=batches, round=0).plan.batches.steps
    array([5, 5], dtype=int32)

    Args:
      ids: distinct numbers of the clients, ``int[c]``, each below the state's ``num_clients``.
      ranks: their ranks, ``int[c]`` or one for all.
      weights: their weights in the aggregation, ``float[c]`` or one for all: usually their numbers
        of training examples. A client of weight 0 is absent.
      batches: a pytree of the examples themselves, leaves ``[c, s, n, ...]`` for `s` local steps of
        `n` examples; or, with ``data``, an array ``int[c, s, n]`` of row numbers, -1 where a batch
        is not full. Rounds with equal shapes share one compilation.
      round: its number, from 0.
      data: a pytree of all training examples, leaves ``[E, ...]``. Put on the device before
        (`jax.device_put`), it is not sent again every round.
      valid: ``bool[c, s, n]``, false where there is no example; by default all are valid, or those
        with a row number of at least 0. A client takes no step after its last valid example.
      rate: multiplies the optimizer's updates, for a learning rate schedule over rounds.
      attackers: who of the cohort commits each attack of the round, ``bool[c]`` each.
      staleness: rounds since each client began, ``int[c]``; see `make_round`.

    Raises:
      InputError: arrays of other shapes or types, equal ids, negative weights, row numbers beyond
        the data.
    """
    ids = _whole("ids", ids)
    if ids.ndim != 1:
        raise InputError(f"ids has shape {ids.shape}; give one number per client, [c].")
    weight = _per_client("weights", np.asarray(weights, np.float32), ids)
    rank = _per_client("ranks", _whole("ranks", ranks), ids)
    _check_clients(ids, weight)
    index, examples = _rows(batches, data, len(ids))
    keep = index >= 0 if valid is None else np.asarray(valid, bool)
    if keep.shape != index.shape:
        raise InputError(f"valid has shape {keep.shape} for batches of {index.shape}; give equal.")
    steps = np.max(np.where(keep.any(axis=2), np.arange(1, keep.shape[1] + 1), 0), axis=1)
    nothing = np.zeros(index.shape[:2], np.int32)
    plan = Plan(
        id=ids,
        rank=rank,
        weight=weight,
        batches=Batches(
            np.maximum(index, 0), keep, steps.astype(np.int32), longest=nothing, tokens=nothing
        ),
        rate=np.float32(rate),
        round=np.int32(round),
        attackers=tuple(_per_client("attackers", np.asarray(x, bool), ids) for x in attackers),
        staleness=_late(staleness, ids, round),
    )
    return RoundInput(plan, examples)


def _late(staleness: ArrayLike | None, ids: np.ndarray, round: int) -> np.ndarray | tuple[()]:
    if staleness is None:
        return ()
    late = _per_client("staleness", _whole("staleness", staleness), ids)
    if late.size and not 0 <= late.min() <= late.max() <= round:
        raise InputError(
            f"staleness must be from 0 to the number of the round, {round}, got {late.tolist()}."
        )
    return late


def _whole(name: str, values: Any) -> np.ndarray:
    """Whole numbers as int32; others would be cut without a word."""
    array = np.asarray(values)
    limits = np.iinfo(np.int32)
    fits = (
        np.issubdtype(array.dtype, np.integer)
        and not ((array < limits.min) | (array > limits.max)).any()
    )
    if array.size and not fits:
        raise InputError(f"{name} must be whole numbers of 32 bits, got {array.tolist()}.")
    return array.astype(np.int32)


def _per_client(name: str, array: np.ndarray, ids: np.ndarray) -> np.ndarray:
    if array.shape not in ((), ids.shape):
        raise InputError(
            f"{name} has shape {array.shape} for {len(ids)} clients; give [{len(ids)}], or one "
            "number for all."
        )
    return np.broadcast_to(array, ids.shape).copy()


def _check_clients(ids: np.ndarray, weight: np.ndarray) -> None:
    if not (np.isfinite(weight) & (weight >= 0)).all():
        raise InputError(f"weights must be finite and at least 0, got {weight.tolist()}.")
    present = ids[weight > 0]
    if len(np.unique(present)) < len(present):
        raise InputError(f"A client is in the cohort twice, ids are {ids.tolist()}; draw distinct.")


def _rows(batches: Any, data: Any, count: int) -> tuple[np.ndarray, Any]:
    """Row numbers ``int32[c, s, n]``, and the data ``[E, ...]`` that they belong to."""
    leaves = jax.tree.leaves(batches)
    shapes = {tuple(np.shape(x)[:3]) for x in leaves}
    shape = next(iter(shapes), ())
    if len(shapes) != 1 or len(shape) != 3 or shape[0] != count:
        raise InputError(
            "batches must have leading axes [c, s, n] (clients, steps, examples) with "
            f"c = {count}, got shapes {[tuple(np.shape(x)) for x in leaves]}."
        )
    if data is None:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), batches)
        return np.arange(np.prod(shape), dtype=np.int32).reshape(shape), flat
    return _row_numbers(batches, data), data


def _row_numbers(batches: Any, data: Any) -> np.ndarray:
    """The array of row numbers, if the data have these rows."""
    index = np.asarray(batches)
    if not np.issubdtype(index.dtype, np.integer):
        raise InputError(
            f"batches must hold row numbers of data, got {index.dtype}; leave out data to give the "
            "examples themselves."
        )
    sizes = {np.shape(x)[0] for x in jax.tree.leaves(data)}
    last = int(index.max(initial=-1))
    if len(sizes) != 1 or last >= min(sizes):
        raise InputError(
            f"batches name rows up to {last}, the leaves of data have {sorted(sizes)} rows; give "
            "row numbers below, and leaves of equal length."
        )
    return index.astype(np.int32)
