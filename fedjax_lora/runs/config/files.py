"""Reading of config files in JSON, YAML and TOML as plain values, with no surprise of the format.

YAML is read as version 1.2 reads plain scalars: ``1e-3`` is a number, and ``no``, ``on`` and dates
are strings. A key that is given twice is refused, as TOML does.
"""

import json
import pathlib
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import yaml

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import Record
from fedjax_lora.core.untrusted_files import check_regular_file, first_line

LARGEST_CONFIG = 2**20
"""Bytes of the largest config file that is read."""


class _Loader(yaml.SafeLoader):
    """A safe loader with the plain scalars of YAML 1.2, without aliases and repeated keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _check_keys([(key, None) for key in keys])
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), list(_first)
    )
# PyYAML reads 010 as octal 8; version 1.2 as ten.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(str(node.value)))


def _check_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return pairs as a dictionary, after a check that no key is given twice."""
    seen: list[Any] = []
    for key, _ in pairs:
        if not isinstance(key, str):
            raise ValueError(f"key {key!r} is not a string")
        if key in seen:
            raise ValueError(f"key {key!r} is given twice")
        seen.append(key)
    return dict(pairs)


def _yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_check_keys)


FORMATS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    ".json": ("JSON", _json),
    ".yaml": ("YAML", _yaml),
    ".yml": ("YAML", _yaml),
    ".toml": ("TOML", tomllib.loads),
}
"""Name and reader of a config file's format, by the ending of the file."""


def read_config_file(path: str | pathlib.Path) -> Record:
    """Read the groups and options of a config file.

    Args:
      path: a file that ends in one of `FORMATS`; one with another ending is read as JSON.

    Raises:
      InputError: no such file, too large, not in its format, with a key given twice, or no mapping
        of names to values.
    """
    path = pathlib.Path(path)
    name, read = FORMATS.get(path.suffix.lower(), FORMATS[".json"])
    check_regular_file(path)
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise InputError(
                f"{path} has more than {LARGEST_CONFIG} bytes; is this the right file?"
            )
        values = read(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not {name} ({_reason(error)}); check the file.") from error
    if not isinstance(values, dict):
        raise InputError(f"Config file {path} must map names of groups to options.")
    return values


def _reason(error: Exception) -> str:
    """Return an error of a parser as one line, with the place if it is known."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{getattr(error, 'problem', 'cannot be parsed')}, line {mark.line + 1}"
    return first_line(error)
