"""Configs of runs: what was written into a file comes back."""

import dataclasses
import functools
import json
import pathlib
import types
import typing
from collections.abc import Iterator
from typing import Any

from experiments.robustness.fuzz import grammar
from experiments.robustness.fuzz.case import Answer, Answers, Case, Subject, Unwritten
from fedjax_lora.core.errors import InputError
from fedjax_lora.runs import config as configs

PART = "configs"

SPECS: dict[str, list[str]] = {
    "task": ["docstrings", "mrpc", "file(train='a b.csv', text='x', label=\"it's\")"],
    "method": ["flora", "hlora", "replication(inner='uniform')", "zero_padding"],
    "partition": ["iid", "dirichlet(alpha=0.05)", "shards(per_client=3)", "natural"],
    "ranks": ["fixed(rank=3)", "tiers(ranks=[1, 2], shares=[0.5, 0.5])", "random(low=1, high=4)"],
    "server_optimizer": ["sgd(momentum=0.5)", "adam", "yogi(learning_rate=1e-3)"],
    "optimizer": ["sgd(momentum=0.9)", "adamw(weight_decay=1e-4, b1=0.8)", "lion"],
    "schedule": ["linear(end=0.5)", "cosine", "exponential"],
}
"""Options that read like calls; other strings are names and paths."""

STRINGS = ["x", "a b/ü/[0.01]", "~/models/x", "org/name"]
TUPLES: dict[str, list[Any]] = {
    "updates": [["clip(norm=1.0)", "int8"], ["median"]],
    "faults": [["dropout(probability=0.25)"]],
    "lora_layers": [[0], [1, 0, 5]],
    "mesh": [[2, 2], [-1, 2]],
}


@functools.cache
def choices() -> dict[str, list[Any]]:
    """Values of every option, the default first; derived from the dataclasses."""
    found = {"seed": [0, 7, 2**31]}
    for group in dataclasses.fields(configs.RunConfig):
        if group.name == "seed":
            continue
        record = typing.get_type_hints(configs.RunConfig)[group.name]
        hints = typing.get_type_hints(record)
        default = record()
        for field in dataclasses.fields(record):
            usual = getattr(default, field.name)
            values = [x for x in _values(field.name, hints[field.name]) if x != usual]
            found[f"{group.name}.{field.name}"] = [usual, *values]
    return {name: values for name, values in found.items() if len(values) > 1}


def _values(name: str, hint: Any) -> list[Any]:
    """Unusual values of a type."""
    if name in SPECS:
        return SPECS[name]
    if typing.get_origin(hint) is typing.Literal:
        return [*typing.get_args(hint)]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return [x for part in typing.get_args(hint) for x in _values(name, part)]
    if hint is type(None):
        return [None]
    if typing.get_origin(hint) is tuple:
        return TUPLES[name]
    kinds: dict[Any, list[Any]] = {
        bool: [True, False], int: [1, 3, 48], float: [0.25, 1e-5, 0.1 + 0.2, 1], str: STRINGS,
    }  # fmt: skip
    return kinds[hint]


def cases() -> Iterator[Case]:
    """Endlessly many cases: each value of each option in turn."""
    return grammar.cases(PART, choices(), seed=5)


def write(case: Case, folder: pathlib.Path) -> Subject:
    """Write the options of a case as a config file.

    Raises:
      Unwritten: the options exclude each other.
    """
    groups: dict[str, Any] = {}
    for name in choices():
        if name in case.options:
            group, _, option = name.partition(".")
            if option:
                groups.setdefault(group, {})[option] = case.options[name]
            else:
                groups[group] = case.options[name]
    file = folder / "config.json"
    file.write_text(json.dumps(groups), encoding="utf-8")
    try:
        configs.from_dict(groups)
    except InputError as error:
        raise Unwritten(str(error)) from error
    return Subject(
        theirs=functools.partial(_expected, groups), ours=functools.partial(_ours, file, folder)
    )


def _expected(groups: Any) -> Answer:
    """The defaults with the written values in their places."""
    expected: dict[str, Any] = json.loads(json.dumps(configs.to_dict(configs.RunConfig())))
    for name, value in groups.items():
        expected[name] = expected[name] | value if isinstance(value, dict) else value
    return Answer(expected)


def _ours(file: pathlib.Path, folder: pathlib.Path) -> Answers:
    loaded = configs.load(file)
    yield "load", _as_json(loaded)
    again = folder / "again.json"
    again.write_text(json.dumps(configs.to_dict(loaded)), encoding="utf-8")
    yield "written and read again", _as_json(configs.load(again))


def _as_json(config: configs.RunConfig) -> dict[str, Any]:
    values = configs.to_dict(config)
    values.pop("version", None)
    return json.loads(json.dumps(values))
