"""A message between server and site: named arrays and JSON values, as bytes.

The bytes are a safetensors file, which holds numbers alone: nothing in a message is ever run. What
comes from another machine is not trusted: sizes are checked before anything is read.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedjax_lora.core.errors import InputError

META = "fedjax_lora"
"""Key of the JSON values in the file's metadata."""

MOST_HEADER = 1 << 20
"""Bytes that names, shapes and JSON values of a message may take."""


class Refused(InputError):
    """A message is not what was asked for."""


class Message(NamedTuple):
    """What one side tells the other."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]  # JSON values

    @property
    def array_bytes(self) -> int:
        """Bytes of the arrays alone."""
        return sum(x.nbytes for x in self.arrays.values())


class Form(NamedTuple):
    """The shape and dtype that an array of a message must have."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def to_bytes(message: Message) -> bytes:
    """Write a message as bytes."""
    arrays = {name: np.ascontiguousarray(x) for name, x in message.arrays.items()}
    return save(arrays, metadata={META: json.dumps(message.meta, allow_nan=False)})


def from_bytes(data: bytes, *, most: int) -> Message:
    """Read a message that may hold anything.

    Args:
      data: the bytes.
      most: bytes that its arrays may take.

    Raises:
      Refused: it is too large, or no message.
    """
    if len(data) > most + MOST_HEADER:
        raise Refused(f"A message has {len(data)} bytes where at most {most + MOST_HEADER} fit.")
    size = int.from_bytes(data[:8], "little")
    if not 2 <= size <= min(MOST_HEADER, len(data) - 8):
        raise Refused("A message is damaged: its header does not fit into it.")
    try:
        meta = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][META])
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f"A message is damaged: {type(error).__name__} in its header.") from error
    if not isinstance(meta, dict):
        raise Refused("A message is damaged: its JSON values have no names.")
    return Message(arrays, meta)


def check_arrays(message: Message, forms: Mapping[str, Form]) -> None:
    """Check that a message has these arrays and no others.

    Raises:
      Refused: an array is missing, is not asked for, or has another shape or dtype.
    """
    if missing := sorted(set(forms) - set(message.arrays)):
        raise Refused(f"A message lacks {len(missing)} arrays, the first is {missing[0]!r}.")
    if more := sorted(set(message.arrays) - set(forms)):
        raise Refused(f"A message has {len(more)} arrays too many, the first is {more[0]!r}.")
    for name, form in forms.items():
        x = message.arrays[name]
        if (x.shape, x.dtype) != (form.shape, form.dtype):
            raise Refused(
                f"Array {name!r} of a message is {x.dtype}{list(x.shape)}, must be "
                f"{form.dtype}{list(form.shape)}."
            )


def check_meta(message: Message, wanted: Mapping[str, object], others: set[str]) -> None:
    """Check the JSON values of a message.

    Args:
      message: the message.
      wanted: values that it must have.
      others: names of the further values that it must have.

    Raises:
      Refused: another value, a missing or a further one.
    """
    if set(message.meta) != set(wanted) | others:
        names = sorted(set(message.meta) ^ (set(wanted) | others))
        raise Refused(f"A message has other values than asked for, the first is {names[0]!r}.")
    for name, value in wanted.items():
        got = message.meta[name]
        if type(got) is not type(value) or got != value:
            raise Refused(f"A message says {name} = {got!r} where {value!r} is due.")


def text(message: Message, name: str, *, most: int = 200) -> str:
    """Return a JSON string of a message.

    Raises:
      Refused: it is none, or longer than ``most`` characters.
    """
    got = message.meta.get(name)
    if not isinstance(got, str) or len(got) > most:
        raise Refused(f"A message has no text of at most {most} characters as {name}.")
    return got


def number(message: Message, name: str, low: float, high: float, *, whole: bool = False) -> float:
    """Return a JSON number of a message that is within limits.

    Raises:
      Refused: it is not.
    """
    got = message.meta.get(name)
    kinds = (int,) if whole else (int, float)
    if isinstance(got, bool) or not isinstance(got, kinds) or not low <= got <= high:
        raise Refused(f"A message says {name} = {got!r}, must be from {low:g} to {high:g}.")
    return got
