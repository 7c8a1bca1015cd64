"""A config's JSON form, in files and result folders."""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

from fedjax_lora.core.errors import InputError, raise_all, unknown
from fedjax_lora.core.registry import fits
from fedjax_lora.core.untrusted_files import read_json
from fedjax_lora.runs.config.schema import RunConfig


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as nested dictionaries of JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The inverse of `to_dict`; fields that are missing take their defaults.

    Raises:
      InputError: an unknown field, or a value of the wrong type.
    """
    groups = {field.name: field for field in dataclasses.fields(RunConfig)}
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in groups:
            raise unknown("config field", name, groups)
        made[name] = value if name == "seed" else _group(name, groups[name].type, value)
    return _checked(RunConfig, "seed", made)


def _group(name: str, kind: Any, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"Config field {name!r} must hold a group of options, got {values!r}.")
    known = {field.name for field in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            raise unknown(f"option in config group {name!r}:", key, known)
    return _checked(kind, name, dict(values))


def _checked(kind: Any, where: str, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    made = {key: tuple(x) if isinstance(x, list) else x for key, x in values.items()}
    raise_all(
        "Config options of the wrong kind",
        [f"{where}.{key} cannot be {x!r}" for key, x in made.items() if not fits(x, hints[key])],
    )
    return kind(**made)


def load(path: str | pathlib.Path) -> RunConfig:
    """Read a config from a JSON file.

    Raises:
      InputError: no such file, not JSON, or not a config.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"Config file {path} must hold a JSON object.")
    return from_dict(values)
