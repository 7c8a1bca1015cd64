"""The numbers of a comparison: every evaluated round as a row, and a summary over the seeds.

An interval is Student's, two-sided, 95 %, over seeds: it says how well the mean over seeds is
known under the assumption of normal scores, for this task and this federation. A difference is
paired: the same seed gives two methods the same data, clients, cohorts and ranks, so that what
both owe to a lucky seed cancels.

A model that has diverged has no score, None in a record: a mean over seeds with one is none either.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from fedjax_lora import data
from fedjax_lora.core import registry
from fedjax_lora.core.json_values import History, JsonValue
from fedjax_lora.core.safe_text import markdown_cell, spreadsheet_cell
from fedjax_lora.runs.sweep.fairness import Fairness, fairness, table
from fedjax_lora.runs.sweep.grid import Cell
from fedjax_lora.runs.sweep.intervals import Estimate, estimate
from fedjax_lora.runs.sweep.record_store import Record

Run = tuple[Cell, Record]

EVENTS = ("dropped", "stragglers", "rejected")
"""What happens to clients in a round, in a record the ids; older records do not have all."""

CLOCK, CLOCK_EVENTS = "simulated_seconds", ("late", "surplus")
"""What records of runs with a simulated clock have besides."""


class Line(NamedTuple):
    """One method at one choice of the varied fields, over its seeds."""

    labels: Record  # method and varied fields
    metric: str
    runs: list[Run]
    score: Estimate  # of the metric after the last round; NaN if a seed has diverged
    difference: Estimate | None  # to the first method; None for itself, or without a common seed
    up: float  # bytes of a whole run, mean over seeds
    down: float
    time: "Time | None" = None  # on the simulated clock, if all runs of the table have one
    fairness: dict[str, Fairness] | None = None  # by model, if all runs of the line have it


class Time(NamedTuple):
    """Simulated seconds of a line, means over its seeds."""

    total: float
    target: float  # the score that every run of this task reaches, or that ends the runs
    to_target: float  # NaN if a seed does not reach it


def metric_of(cell: Cell) -> str:
    """The name of the task's metric."""
    return data.find_task(cell.config.data.task).metric


def evaluated(run: Run) -> History:
    """The rounds that were evaluated, with the bytes and the simulated time up to there."""
    cell, record = run
    history = record["history"]
    summed = ["up_bytes", "down_bytes"] + [CLOCK] * has_clock(run)
    sums = {key: np.cumsum([h[key] for h in history]).tolist() for key in summed}
    return [
        h | {key: sums[key][at] for key in summed}
        for at, h in enumerate(history)
        if metric_of(cell) in h
    ]


def has_clock(run: Run) -> bool:
    """Whether a run has counted simulated time."""
    return all(CLOCK in h for h in run[1]["history"])


def scores(history: History, metric: str) -> list[float]:
    """The metric of every record; NaN where the model had diverged."""
    return [math.nan if h[metric] is None else float(h[metric]) for h in history]


def rows(runs: Iterable[Run]) -> list[Record]:
    """The tidy table: one row per run and evaluated round, all of one set of columns.

    Bytes and simulated seconds are sums over all rounds so far, `EVENTS` (and `CLOCK_EVENTS`) the
    numbers of clients with whom that happened in this round; the other numbers are as in a run's
    ``metrics.jsonl``.
    """
    found = [
        {key: _plain(x) for key, x in run[0].labels.items()}
        | {key: x for key, x in h.items() if x is None or isinstance(x, int | float)}
        | {event: len(h.get(event, ())) for event in (*EVENTS, *CLOCK_EVENTS * has_clock(run))}
        for run in runs
        for h in evaluated(run)
    ]
    columns = dict.fromkeys(key for row in found for key in row)
    return [{key: row.get(key) for key in columns} for row in found]


def _plain(value: JsonValue) -> JsonValue:
    """A label as one field of a table."""
    return json.dumps(value) if isinstance(value, list | tuple) else value


def as_csv(table: Sequence[Mapping[str, JsonValue]]) -> str:
    """The rows as comma-separated values with a header; texts are safe in a spreadsheet."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        safe = {k: spreadsheet_cell(x) if isinstance(x, str) else x for k, x in row.items()}
        writer.writerow(safe)
    return text.getvalue()


def as_parquet(table: Sequence[Mapping[str, JsonValue]]) -> bytes:
    """The rows as the contents of a Parquet file."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(table)), buffer)
    return buffer.getvalue()


def summarise(runs: Sequence[Run]) -> list[Line]:
    """A line for each method and choice of the varied fields, in the order of the runs.

    The first run's method is what the others differ from, at the same choice and seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(_choice(run[0].labels)), []).append(run)
    lines = [_line(group, groups, runs[0][0].labels["method"]) for group in groups.values()]
    if not all(has_clock(run) for run in runs):
        return lines
    targets = _targets(runs)
    return [line._replace(time=_time(line, targets[_task(line.runs[0])])) for line in lines]


def _task(run: Run) -> str:
    return run[0].config.data.task


def _targets(runs: Sequence[Run]) -> dict[str, float]:
    """The score by task whose time is told: that of ``stop="target(...)"``, or the best of all.

    The latter is the highest that every run has reached in some round.
    """
    found: dict[str, float] = {}
    for task in dict.fromkeys(map(_task, runs)):
        own = [run for run in runs if _task(run) == task]
        sign = _sign(own[0])
        ends = {run[0].config.federation.stop for run in own}
        name, options = registry.parse(ends.pop(), "stopping rule") if len(ends) == 1 else ("", {})
        best = [max(sign * x for x in _known(run)) for run in own]
        found[task] = options["score"] if name == "target" else sign * min(best)
    return found


def _known(run: Run) -> list[float]:
    """The scores of a run, those of a diverged model as the worst possible."""
    worst = -_sign(run) * math.inf
    return [worst if math.isnan(x) else x for x in scores(evaluated(run), metric_of(run[0]))]


def _sign(run: Run) -> int:
    return -1 if data.find_task(run[0].config.data.task).lower_is_better else 1


def _time(line: Line, target: float) -> Time:
    reached = [_seconds_to(run, target) for run in line.runs]
    total = [evaluated(run)[-1][CLOCK] for run in line.runs]
    return Time(float(np.mean(total)), target, float(np.mean(reached)))


def _seconds_to(run: Run, target: float) -> float:
    """Simulated seconds until a run has reached a score; NaN if it does not."""
    sign = _sign(run)
    for entry, score in zip(evaluated(run), _known(run), strict=True):
        if sign * score >= sign * target:
            return entry[CLOCK]
    return math.nan


def _choice(labels: Record) -> Record:
    return {key: value for key, value in labels.items() if key != "seed"}


def _key(labels: Record) -> str:
    return json.dumps(labels)


def _line(group: list[Run], groups: Mapping[str, list[Run]], first: str) -> Line:
    labels = _choice(group[0][0].labels)
    metric = metric_of(group[0][0])
    own = _last(group, metric)
    other = _last(groups.get(_key(labels | {"method": first}), []), metric)
    common = [own[seed] - other[seed] for seed in own if seed in other]
    sent = [evaluated(run)[-1] for run in group]
    return Line(
        labels,
        metric,
        group,
        estimate([*own.values()]),
        estimate(common) if common and labels["method"] != first else None,
        float(np.mean([h["up_bytes"] for h in sent])),
        float(np.mean([h["down_bytes"] for h in sent])),
        fairness=fairness([record["summary"] for _, record in group]),
    )


def _last(group: Iterable[Run], metric: str) -> dict[int, float]:
    return {cell.config.seed: scores(record["history"][-1:], metric)[0] for cell, record in group}


def shown(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """The summary as text: a header and rows, the same for terminal, Markdown and HTML."""
    several = len({line.labels["method"] for line in lines}) > 1
    metrics = {line.metric for line in lines}
    header = [*lines[0].labels]
    header += [*metrics] if len(metrics) == 1 else ["metric", "score"]
    header += ["sd", "95 % interval", "seeds"]
    if several:
        header += [f"paired difference to {lines[0].labels['method']}"]
    header += ["MB up", "MB down"]
    if lines[0].time is not None:
        targets = {line.time.target for line in lines if line.time is not None}
        reached = f"{targets.pop():.4f}" if len(targets) == 1 else "the score of all runs"
        header += ["simulated h", f"h to {reached}"]
    body = [list(_texts(line, several, len(metrics) > 1)) for line in lines]
    if worst := _worst_tenths(lines):
        header.append("worst tenth of clients")
        body = [[*row, text] for row, text in zip(body, worst, strict=True)]
    return header, body


def _worst_tenths(lines: Sequence[Line]) -> list[str]:
    """The accuracy of the worst tenth of clients with their own models, if all lines have it."""
    found = [line.fairness["own"].worst_tenth for line in lines if line.fairness is not None]
    return [f"{value:.4f}" for value in found] if len(found) == len(lines) else []


def by_client(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]] | None:
    """A table of how clients fare as text: a header and rows; None if no run has scored them."""
    found = [
        ([str(_plain(value)) for value in line.labels.values()], line.fairness)
        for line in lines
        if line.fairness is not None
    ]
    if not found:
        return None
    header, *body = table(found)
    return [*lines[0].labels, *header], body


def _texts(line: Line, several: bool, name_metric: bool) -> Iterator[str]:
    yield from (str(_plain(value)) for value in line.labels.values())
    if name_metric:
        yield line.metric
    yield _number(line.score.mean)
    yield _number(line.score.deviation)
    yield _interval(line.score)
    yield str(line.score.n)
    if several:
        yield _difference(line.difference, line.score.n)
    yield f"{line.up / 1e6:.2f}"
    yield f"{line.down / 1e6:.2f}"
    if line.time is not None:
        yield f"{line.time.total / 3600:.3g}"
        yield "-" if math.isnan(line.time.to_target) else f"{line.time.to_target / 3600:.3g}"


def _number(value: float, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.4f}"


def _interval(score: Estimate, sign: str = "") -> str:
    if math.isnan(score.half):  # of one seed, or one has diverged
        return "-"
    return f"[{score.low:{sign}.4f}, {score.high:{sign}.4f}]"


def _difference(difference: Estimate | None, n: int) -> str:
    if difference is None or math.isnan(difference.mean):
        return "-"
    text = _number(difference.mean, "+")
    text += f" {_interval(difference, '+')}" if difference.n > 1 else ""
    return text if difference.n == n else f"{text} ({difference.n} of {n} seeds)"


def markdown(lines: Sequence[Line]) -> str:
    """The summary as a Markdown table, and a second one of clients if runs have scored them."""
    text = _markdown_of(*shown(lines))
    clients = by_client(lines)
    return text if clients is None else text + "\n" + _markdown_of(*clients)


def _markdown_of(header: list[str], body: list[list[str]]) -> str:
    made = [header, ["---"] * len(header), *body]
    return "".join("| " + " | ".join(map(markdown_cell, row)) + " |\n" for row in made)
