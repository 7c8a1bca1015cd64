"""Check the options of records and functions against their annotations, on creation.

A wrong word for a `Literal` option would otherwise be read as the default by whoever compares it
with the other words. NumPy's and JAX's scalars, which sweeps and notebooks are full of, become
Python values, so that a record can be written as JSON and compared.
"""

import dataclasses
import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.registry import describe, fits

F = TypeVar("F", bound=Callable[..., Any])


def plain(value: object) -> object:
    """Return a scalar of NumPy or JAX as a Python value, a sequence as a tuple, a path as text.

    >>> plain([1, 2]), plain("a")
    ((1, 2), 'a')
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        value = cast(Any, value).tolist()
    return tuple(map(plain, value)) if isinstance(value, list | tuple | range) else value


def check_fields(record: object, group: str = "") -> None:
    """Check the fields of a frozen dataclass that hold options, and store them as plain values.

    Fields of other types (functions, arrays) are left alone.

    Args:
      record: the record, from its ``__post_init__``.
      group: what its fields are called by in messages, if not by their names alone.

    Raises:
      InputError: values of the wrong type, or words that are none of the choices; all are named.
    """
    hints = _hints(type(record))
    fields = dataclasses.fields(cast(Any, record))
    given = {f.name: getattr(record, f.name) for f in fields if f.name in hints}
    subject = f"Options of {type(record).__name__} of the wrong kind"
    for name, value in _checked(subject, hints, given, f"{group}." if group else "").items():
        object.__setattr__(record, name, value)


def checked_options(function: F) -> F:
    """Decorate a function such that its keyword-only arguments are checked at every call.

    Arguments whose annotation is that of options are stored as plain values and checked as
    `check_fields` does, so that a factory that is called directly refuses what a spec would.

    >>> @checked_options
    ... def scale(x: float, *, by: Literal["one", "two"] = "one") -> float:
    ...     return x * (2 if by == "two" else 1)
    >>> scale(1.5, by="two")
    3.0
    """
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @functools.wraps(function)
    def checked(*args: Any, **arguments: Any) -> Any:
        hints = {n: hint for n, hint in _hints(function).items() if n in names & arguments.keys()}
        subject = f"Options of {function.__name__} of the wrong kind"
        given = {name: arguments[name] for name in hints}
        return function(*args, **arguments | _checked(subject, hints, given, ""))

    return cast(F, checked)


def _checked(
    subject: str, hints: Mapping[str, Any], values: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    values = {name: plain(value) for name, value in values.items()}
    raise_all(
        subject,
        [
            f"{prefix}{name} cannot be {value!r}, it is {describe(hints[name])}"
            for name, value in values.items()
            if not fits(value, hints[name])
        ],
    )
    return values


@functools.cache
def _hints(annotated: Any) -> dict[str, Any]:
    """Return the annotations of a record or a function that are those of options."""
    hints = typing.get_type_hints(annotated)
    return {name: hint for name, hint in hints.items() if _is_option(hint)}


def _is_option(hint: Any) -> bool:
    """Whether an annotation is that of plain values, or of a record of them."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal or hint in (str, int, float, bool, type(None)):
        return True
    if origin in (types.UnionType, typing.Union, tuple, Sequence):
        return all(arg is Ellipsis or _is_option(arg) for arg in args)
    return dataclasses.is_dataclass(hint)
