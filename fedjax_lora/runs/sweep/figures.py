"""Figures of a comparison: the test metric over rounds and over bytes, with intervals."""

import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedjax_lora.runs.figure_style import (
    draw_seeds,
    method_styles,
    reference_line,
    shared_legend,
    style_axes,
)
from fedjax_lora.runs.plots import to_beat
from fedjax_lora.runs.sweep.statistics import CLOCK, Line, evaluated, scores

BOUNDS = {
    "accuracy": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "macro_f1": (0.0, 1.0),
    "exact_match": (0.0, 1.0),
    "choice_accuracy": (0.0, 1.0),
    "rouge_l": (0.0, 1.0),
    "perplexity": (1.0, math.inf),
}
"""Possible values of metrics; intervals are clipped to them."""

MEGABYTE = 1e6


class _Curve(NamedTuple):
    line: Line
    label: str
    style: dict[str, Any]


def curves(lines: Sequence[Line]) -> bytes:
    """Draw one row of panels per choice of the varied fields and in it one curve per method.

    With a single method, its curves for all choices share one row. The left panel is over rounds,
    the next one over the bytes that all clients have uploaded and downloaded, and a third over
    simulated time if all runs have a clock. From 4 seeds on,
    bands are 95 % intervals of the mean; with fewer seeds the single runs are drawn as thin lines.
    The panels are as high as the single runs reach.

    Returns:
      The figure as a PNG.
    """
    rows = _rows(lines)
    panels = [*PANELS]
    if all(line.time is not None for line in lines):
        panels.append(_time_panel(lines))
    size = (5 * len(panels), 0.6 + 3.2 * len(rows))
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    grid = figure.subplots(len(rows), len(panels), squeeze=False, sharey="row")
    for (title, inside), row in zip(rows.items(), grid, strict=True):
        for axes, panel in zip(row, panels, strict=True):
            for curve in inside:
                _draw(axes, curve, panel.position)
        _frame(list(zip(row, panels, strict=True)), [curve.line for curve in inside], title)
    shared_legend(figure, list(grid.flat))
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _rows(lines: Sequence[Line]) -> dict[str, list[_Curve]]:
    """The curves of each row of panels, by the row's title."""
    by_method = len({line.labels["method"] for line in lines}) > 1
    key = _method if by_method else _choice
    specs = {key(line): _method(line) for line in lines}
    styles = dict(zip(specs, method_styles(list(specs.values())), strict=True))
    rows: dict[str, list[_Curve]] = {}
    for line in lines:
        curve = _Curve(line, key(line) or _method(line), styles[key(line)])
        rows.setdefault(_choice(line) if by_method else "", []).append(curve)
    return rows


def _method(line: Line) -> str:
    return line.labels["method"]


def _choice(line: Line) -> str:
    """The varied fields and their values, as a title."""
    varied = {key: value for key, value in line.labels.items() if key != "method"}
    return ", ".join(
        f"{key.rpartition('.')[2]} = {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in varied.items()
    )


def _rounds(entry: dict[str, Any]) -> float:
    return entry["round"]


def _megabytes(entry: dict[str, Any]) -> float:
    """Bytes uploaded and downloaded so far, in MB."""
    return (entry["up_bytes"] + entry["down_bytes"]) / MEGABYTE


class _Panel(NamedTuple):
    position: Callable[[dict[str, Any]], float]  # of an evaluated round on the x axis
    label: str


PANELS = (
    _Panel(_rounds, "round"),
    _Panel(_megabytes, "uploaded and downloaded by all clients so far, MB"),
)
"""The panels of a row; one of simulated time follows where runs have a clock."""

UNITS = (("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0))
"""Units of simulated time and their seconds; the largest with at least two of it is taken."""


def _time_panel(lines: Sequence[Line]) -> _Panel:
    """The panel of simulated time, in a unit that fits the longest line."""
    longest = max(line.time.total for line in lines if line.time is not None)
    name, seconds = [unit for unit in UNITS if longest >= 2 * unit[1] or unit is UNITS[0]][-1]
    return _Panel(lambda entry: entry[CLOCK] / seconds, f"simulated time, {name}")


def _draw(axes: Axes, curve: _Curve, position: Any) -> None:
    histories = [evaluated(run) for run in curve.line.runs]
    x = _places(curve.line, position)
    values = [scores(history, curve.line.metric) for history in histories]
    bounds = BOUNDS.get(curve.line.metric, (-math.inf, math.inf))
    draw_seeds(axes, x.tolist(), values, curve.style, label=curve.label, bounds=bounds)


def _places(line: Line, position: Callable[[dict[str, Any]], float]) -> np.ndarray:
    """Where the evaluated rounds of a line are on the x axis, means over its seeds."""
    histories = [evaluated(run) for run in line.runs]
    return np.mean([[position(entry) for entry in history] for history in histories], axis=0)


def _frame(panels: Sequence[tuple[Axes, _Panel]], lines: Sequence[Line], title: str) -> None:
    runs = [run for line in lines for run in line.runs]
    values = [x for line in lines for run in line.runs for x in scores(evaluated(run), line.metric)]
    # The majority class depends on the seed where the seed selects the test examples: the mean.
    baselines = [found for _, r in runs if (found := to_beat(r["summary"], lines[0].metric))]
    if len(baselines) == len(runs):
        values.append(float(np.mean([height for _, height in baselines])))
        for axes, panel in panels:
            last = max(_places(line, panel.position).max() for line in lines)
            reference_line(axes, values[-1], baselines[0][0], at=float(last))
    left = panels[0][0]
    reached = [value for value in values if math.isfinite(value)]
    if reached:
        low, high = min(reached), max(reached)
        margin = 0.08 * (high - low) or 0.05
        left.set_ylim(low - margin, high + margin)
    left.set(ylabel=f"test {lines[0].metric}")
    left.set_title(title, loc="left", fontsize=9)
    for axes, panel in panels:
        axes.set(xlabel=panel.label)
        style_axes(axes, rounds=panel.position is _rounds)
