"""The runs of a comparison: methods x seeds x values of any other config fields."""

import ast
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from fedjax_lora.core.errors import InputError, first_names, raise_all, unknown
from fedjax_lora.core.json_values import JsonValue, Record
from fedjax_lora.core.records import check_fields
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import RunConfig

ELSEWHERE = {"federation.method": "--methods", "seed": "--seeds"}
"""Fields of the config that have an axis of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of methods, seeds and values, applied to one config.

    Attributes:
      base: config that all runs share, but for the fields below.
      methods: specs; differences are taken to the first.
      seeds: each combination is run with all of them.
      vary: values by dotted field, ``{"local.learning_rate": (0.003, 0.01)}``.
    """

    base: RunConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    vary: Mapping[str, tuple[JsonValue, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


class Cell(NamedTuple):
    """One run of a grid.

    Attributes:
      labels: method, varied fields and seed, which together identify the run.
      config: config of the run.
    """

    labels: Record
    config: RunConfig


def name(labels: Record) -> str:
    """Return the name of a run in messages.

    >>> name({"method": "hlora", "local.learning_rate": 0.01, "seed": 2})
    'hlora, local.learning_rate=0.01, seed=2'
    """
    rest = (f"{field}={value}" for field, value in labels.items() if field != "method")
    return ", ".join([labels["method"], *rest])


class Problem(NamedTuple):
    """Why a grid or one of its runs is impossible.

    Attributes:
      run: name of the run; empty for the grid itself.
      reason: a sentence.
    """

    run: str
    reason: str


def cells(grid: Grid) -> tuple[list[Cell], list[Problem]]:
    """Return all runs that are possible, and what is wrong with the others and with the grid.

    They are ordered by seed, so that the finished runs of an interrupted comparison compare all
    methods.
    """
    problems = list(_grid_problems(grid))
    vary = {field: values for field, values in grid.vary.items() if field in set(fields())}
    possible = []
    for seed, values, method in itertools.product(
        grid.seeds, itertools.product(*vary.values()), grid.methods
    ):
        varied = dict(zip(vary, values, strict=True))
        labels = {"method": method, **varied, "seed": seed}
        try:
            config = changed(grid.base, {**varied, "federation.method": method, "seed": seed})
        except InputError as error:
            problems.append(Problem(name(labels), str(error)))
        else:
            problems.extend(Problem(name(labels), reason) for reason in _run_problems(config))
            possible.append(Cell(labels, config))
    return possible, problems


def _run_problems(config: RunConfig) -> Iterator[str]:
    """Yield why a possible run cannot be compared."""
    if config.federation.stop != "never":
        yield "runs that are compared have equal numbers of rounds; leave out federation.stop"


def refuse(problems: Sequence[Problem]) -> None:
    """Raise one `InputError` that lists every problem; a problem of several runs is listed once."""
    runs_of: dict[str, list[str]] = {}
    for problem in problems:
        runs_of.setdefault(problem.reason.rstrip("."), []).append(problem.run)
    raise_all(
        "This comparison is impossible",
        [
            f"[{first_names(runs, 1)}] {reason}" if runs[0] else reason
            for reason, runs in runs_of.items()
        ],
    )


def _grid_problems(grid: Grid) -> Iterator[Problem]:
    for what, values in {"method": grid.methods, "seed": grid.seeds, **grid.vary}.items():
        if not values:
            yield Problem("", f"{what} has no value")
        repeated = [x for at, x in enumerate(values) if values.index(x) < at]
        yield from (Problem("", f"{what} {value!r} is given twice") for value in repeated)
    varied_fields = fields()
    for field in grid.vary:
        if field in configs.RENAMED:
            yield Problem("", f"{field} is now {configs.RENAMED[field]}")
        elif field in ELSEWHERE:
            yield Problem("", f"{field} is varied by {ELSEWHERE[field]}")
        elif field not in varied_fields:
            yield Problem("", str(unknown("config field", field, varied_fields)))


def fields() -> list[str]:
    """Return the dotted names of all config fields that ``--vary`` may name.

    >>> [field for field in fields() if field.startswith("local.clip")]
    ['local.clip']
    """
    groups = configs.to_dict(RunConfig())
    dotted = [f"{g}.{f}" for g, values in groups.items() if g not in ELSEWHERE for f in values]
    return [field for field in dotted if field not in ELSEWHERE]


def changed(base: RunConfig, values: Mapping[str, JsonValue]) -> RunConfig:
    """Return the config with other values of some fields, given by dotted name.

    >>> changed(RunConfig(), {"local.batch": 4, "seed": 1}).local.batch
    4

    Raises:
      InputError: an unknown field, or a value of the wrong kind.
    """
    tree = configs.to_dict(base)
    for field, value in values.items():
        group, _, key = field.rpartition(".")
        (tree[group] if group else tree)[key] = value
    return configs.from_dict(tree)


def parse_vary(texts: Sequence[str]) -> dict[str, tuple[JsonValue, ...]]:
    """Parse the varied fields of a command line: ``field=value,value`` or ``field=[list]``.

    >>> parse_vary(["local.learning_rate=0.003,0.01", "model.pooling=['mean', 'family']"])
    {'local.learning_rate': (0.003, 0.01), 'model.pooling': ('mean', 'family')}
    >>> parse_vary(["federation.ranks=fixed(rank=4),tiers(ranks=[2, 8])"])
    {'federation.ranks': ('fixed(rank=4)', 'tiers(ranks=[2, 8])')}

    Raises:
      InputError: no ``=``, no value, or a field given twice.
    """
    vary: dict[str, tuple[JsonValue, ...]] = {}
    for text in texts:
        field, equals, values = (part.strip() for part in text.partition("="))
        if not (field and equals and values):
            raise InputError(
                f"Varied field {text!r} is not written as field=value,value, for example "
                "local.learning_rate=0.003,0.01."
            )
        if field in vary:
            raise InputError(f"Field {field} is varied twice; list all its values once.")
        vary[field] = _values(values)
    return vary


def _values(text: str) -> tuple[JsonValue, ...]:
    value = _literal(text)
    if isinstance(value, list | tuple):
        return cast(tuple[JsonValue, ...], tuple(value))
    return tuple(_literal(word.strip()) for word in _split(text))


def _literal(text: str) -> JsonValue:
    """Return the Python or JSON value of a text, or else the text itself."""
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return text


def _split(text: str) -> list[str]:
    """Split a text at the commas outside of brackets and quotes."""
    words, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0 and not quote:
            words.append("")
        else:
            words[-1] += char
    return words
