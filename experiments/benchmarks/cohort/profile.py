"""Shares of time by kind of operation in this library's round, from a trace.

python -m experiments.benchmarks.cohort.profile --data-dir DATA
"""

import collections
import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import tyro

from experiments.benchmarks.cohort import RESULTS, base, ours
from experiments.benchmarks.cohort.work import CASES, Case
from experiments.tools.alternate import machine

FILE = RESULTS / "profile.json"
PRODUCTS, BETWEEN = "matrix products", "nothing: between operations"
KINDS = {
    PRODUCTS: {"dot"},
    "gathers and scatters": {"gather", "scatter"},
    "exponentials, roots and sums: softmax, GELU, norms": {
        "exponential", "erf", "tanh", "rsqrt", "sqrt", "reduce", "reduce-window", "divide",
    },
    "copies and changes of layout": {"copy", "transpose"},
}  # fmt: skip
"""A fusion belongs to the first kind that one of its operations has."""
OTHERS = "other arithmetic"
TRACED = tuple(case.name for case in CASES[:3])
CONTAINERS = {"while", "conditional", "call"}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*?\s([a-z][\w\-]*)\(")
_CALLS = re.compile(r"calls=%?([\w.\-]+)")


class Event(NamedTuple):
    """An operation in the trace of a thread."""

    kind: str
    begin: float  # ns
    end: float


def kinds_of(text: str) -> dict[str, str]:
    """Parse the kind of every operation by its name from a compiled program's text."""
    holds: dict[str, set[str]] = collections.defaultdict(set)
    operations: dict[str, tuple[str, str | None]] = {}
    here = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            here = opened[1]
        elif found := _OPERATION.match(line):
            holds[here].add(found[2])
            called = _CALLS.search(line)
            operations[found[1]] = (found[2], called and called[1])

    def kind(operation: str, called: str | None) -> str:
        inside = {operation} if called is None else holds[called]
        return next((name for name, some in KINDS.items() if some & inside), OTHERS)

    return {name: kind(*x) for name, x in operations.items() if x[0] not in CONTAINERS}


def shares(events: Iterable[Event]) -> dict[str, float]:
    """Compute the share of each kind in the time between the first and the last event.

    Where several threads run different operations at once, the time is divided between them.
    """
    marks = sorted(
        mark for event in events for mark in ((event.begin, 1, event), (event.end, -1, event))
    )
    took: dict[str, float] = collections.defaultdict(float)
    active: collections.Counter[str] = collections.Counter()
    before = marks[0][0]
    for time, change, event in marks:
        for kind, count in active.items() if active.total() else ((BETWEEN, 1),):
            took[kind] += (time - before) * count / max(active.total(), 1)
        active[event.kind] += change
        before = time
    whole = marks[-1][0] - marks[0][0]
    return {kind: time / whole for kind, time in took.items() if time}


def events_of(trace: pathlib.Path, kinds: Mapping[str, str]) -> Iterator[Event]:
    """Read the operations of all threads from the files of a trace."""
    (file,) = trace.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in kinds:
                    end = event.start_ns + event.duration_ns
                    yield Event(kinds[event.name], event.start_ns, end)


def profile(case: Case, folder: pathlib.Path, data_dir: str | None) -> dict[str, Any]:
    """Trace the third round of a case."""
    base.write(case.model, folder / "model", data_dir)
    round, text = ours.compiled(case, str(folder / "model"), data_dir)
    round()
    round()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder / "trace", profiler_options=options):
        round()
    found = shares(events_of(folder / "trace", kinds_of(text)))
    return {"case": dataclasses.asdict(case), "shares": found}


def main(data_dir: str | None = None, only: tuple[str, ...] = TRACED) -> None:
    """Trace a round of some cases.

    Args:
      data_dir: folder with ``ag_news``; the built-in task by default.
      only: names of the cases.
    """
    found = []
    for case in CASES:
        if case.name in only:
            with tempfile.TemporaryDirectory() as made:
                found.append(profile(case, pathlib.Path(made), data_dir))
    record = {"machine": machine(), "jax": jax.__version__, "cases": found}
    FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
