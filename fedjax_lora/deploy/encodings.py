"""How the numbers of a client's update are written: float32, bfloat16, or int8 codes.

The first is the values themselves. The others write the change from what the server sent, which it
knows; int8 as codes and one scale per matrix, rounded at random so that the expectation is the
change itself.
"""

from typing import Literal

import ml_dtypes
import numpy as np

from fedjax_lora.deploy.message import Form

Encoding = Literal["float32", "bfloat16", "int8"]
ENCODINGS: tuple[Encoding, ...] = ("float32", "bfloat16", "int8")

LEVELS = 127
"""The largest magnitude of a symmetric 8-bit integer."""

_DTYPES = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}


def forms(name: str, rows: np.ndarray, width: int, encoding: Encoding) -> dict[str, Form]:
    """The arrays that `encode` makes.

    Args:
      name: of the array.
      rows: ``int[n]``, the matrix that each row belongs to.
      width: numbers in a row.
      encoding: how they are written.
    """
    made = {name: Form((len(rows), width), np.dtype(_DTYPES[encoding]))}
    if encoding == "int8":
        made[f"{name}.scale"] = Form((len(np.unique(rows)),), np.dtype(np.float32))
    return made


def encode(
    name: str,
    new: np.ndarray,
    old: np.ndarray,
    rows: np.ndarray,
    encoding: Encoding,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Write the rows of an array.

    Args:
      name: of the array.
      new: ``float32[n, width]``, what is written.
      old: ``float32[n, width]``, what the server sent.
      rows: ``int[n]``, the matrix that each row belongs to.
      encoding: how they are written.
      rng: rounds int8 codes.
    """
    if encoding == "float32":
        return {name: new}
    change = new - old
    if encoding == "bfloat16":
        return {name: change.astype(ml_dtypes.bfloat16).view(np.uint16)}
    matrix, place = np.unique(rows, return_inverse=True)
    largest = np.zeros(len(matrix), np.float32)
    np.maximum.at(largest, place, np.abs(change).max(axis=1, initial=0))
    scale = (largest / np.float32(LEVELS)).astype(np.float32)
    unit = np.where(scale > 0, scale, np.float32(1))[place][:, None]
    level = change / unit
    below = np.floor(level)
    codes = below + (rng.random(level.shape, np.float32) < level - below)
    return {
        name: np.clip(codes, -LEVELS, LEVELS).astype(np.int8),
        f"{name}.scale": scale,
    }


def decode(
    name: str,
    arrays: dict[str, np.ndarray],
    old: np.ndarray,
    rows: np.ndarray,
    encoding: Encoding,
) -> np.ndarray:
    """Read what `encode` has written: ``float32[n, width]``."""
    got = arrays[name]
    if encoding == "float32":
        return got
    if encoding == "bfloat16":
        return old + got.view(ml_dtypes.bfloat16).astype(np.float32)
    place = np.unique(rows, return_inverse=True)[1]
    return old + arrays[f"{name}.scale"][place][:, None] * got.astype(np.float32)
