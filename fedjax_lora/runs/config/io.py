"""Convert a config to JSON values and back, and read configs of this and older versions."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.core.json_values import Record
from fedjax_lora.core.version import BEFORE_0_3, __version__
from fedjax_lora.runs.config.files import read_config_file
from fedjax_lora.runs.config.former_defaults import pin_defaults
from fedjax_lora.runs.config.schema import RunConfig

VERSION = "version"
"""Key of the package version in a config file; version 0.1 did not write it."""

RENAMED: Mapping[str, str] = {"execution.wave": "execution.clients_per_step"}
"""Fields of version 0.1 that have another name now."""


def to_dict(config: RunConfig) -> Record:
    """Return the config as nested dictionaries of JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_record(config: RunConfig) -> Record:
    """Return the config as JSON values with the version, as run folders and results keep it."""
    return {VERSION: __version__} | to_dict(config)


def from_record(values: Mapping[str, object]) -> RunConfig:
    """Build the config of a run that was recorded by this or an older version.

    Defaults of the method that have changed since are written out, so that the config says what the
    run was: see `fedjax_lora.runs.config.former_defaults`.

    Args:
      values: of `to_record`, of this or an older version.

    Raises:
      InputError: as for `from_dict`.
    """
    config = from_dict(values)
    return pin_defaults(config) if values.get(VERSION) in BEFORE_0_3 else config


def differing_fields(one: object, other: object, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two nested dictionaries differ.

    >>> differing_fields({"seed": 0, "data": {"task": "a"}}, {"seed": 0, "data": {"task": "b"}})
    ['data.task']
    """
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [prefix]
    return [
        field
        for name in sorted(set(one) | set(other))
        for field in differing_fields(
            one.get(name), other.get(name), f"{prefix}.{name}" if prefix else name
        )
    ]


def from_dict(values: Mapping[str, object]) -> RunConfig:
    """Build a config from nested dictionaries, the inverse of `to_dict`.

    Fields that are missing take their defaults. Values without a ``version`` may be those of
    version 0.1: its names of fields are read too.

    Args:
      values: as `to_dict` returns them, or as in the ``config.json`` of a run folder, which also
        holds the ``version`` of the package that wrote it.

    Raises:
      InputError: an unknown field, or a value of the wrong type.
    """
    values = dict(values)
    version = values.pop(VERSION, None)
    if version is None:
        values = _upgrade(values)
    try:
        return _from_groups(values)
    except InputError as error:
        if version in (None, __version__):
            raise
        raise InputError(
            f"This config was written by version {version} of fedjax-lora, and version "
            f"{__version__} cannot read it: {error}"
        ) from error


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Give the fields of version 0.1 their present names.

    Raises:
      InputError: a field is given under its old and its new name.
    """
    for old, new in RENAMED.items():
        group, _, name = old.partition(".")
        options = values.get(group)
        if not isinstance(options, Mapping) or name not in options:
            continue
        present = new.partition(".")[2]
        if present in options:
            raise InputError(f"Config field {old} is now {new}; leave out {old}.")
        values[group] = {present if key == name else key: x for key, x in options.items()}
    return values


def _from_groups(values: Mapping[str, object]) -> RunConfig:
    groups = {field.name: field for field in dataclasses.fields(RunConfig)}
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name not in groups:
            raise unknown("config field", name, groups)
        fields[name] = value if name == "seed" else _group(name, groups[name].type, value)
    return RunConfig(**fields)


def _group(name: str, record: Any, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"Config field {name!r} must hold a group of options, got {values!r}.")
    options = {field.name for field in dataclasses.fields(record)}
    for key in values:
        if renamed := RENAMED.get(f"{name}.{key}"):
            raise InputError(f"Config field {name}.{key} is now {renamed}.")
        if key not in options:
            raise unknown(f"option in config group {name!r}:", key, options)
    return record(**values)


def load(path: str | pathlib.Path) -> RunConfig:
    """Read a config from a file in JSON, YAML or TOML.

    A file that has a version, or all groups of options, is taken for the record of a run (see
    `from_record`); one with some of the groups was written by hand.

    Args:
      path: a file with the values of `to_dict`, such as the ``config.json`` of a run folder; see
        `fedjax_lora.runs.config.files` for the formats.

    Raises:
      InputError: no such file, not in the format of its ending, or not a config.
    """
    values = read_config_file(path)
    groups = {field.name for field in dataclasses.fields(RunConfig)}
    recorded = VERSION in values or groups <= values.keys()
    return from_record(values) if recorded else from_dict(values)
