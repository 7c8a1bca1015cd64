"""Figures of a comparison: the metric over the rounds and over the bytes sent, with bands."""

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedjax_lora.runs.plots import level, look, style, to_beat
from fedjax_lora.runs.sweep.statistics import Line, evaluated, scores, spread


def curves(lines: Sequence[Line]) -> bytes:
    """A PNG: a row of panels for each choice of the varied fields, in it a curve per method.

    With one method, its curves for all choices share the one row. Thick lines are means over
    seeds, thin ones single runs, bands 95 % intervals (see `fedjax_lora.runs.sweep.statistics`);
    panels are as high as the single runs reach, and cut bands off that are wider than that.
    """
    by_method = len({line.labels["method"] for line in lines}) > 1
    panels: dict[str, list[Line]] = {}
    for line in lines:
        panels.setdefault(_choice(line) if by_method else "", []).append(line)
    names = [line.labels["method"] if by_method else _choice(line) for line in lines]
    order = list(dict.fromkeys(names))
    figure = Figure(figsize=(10, 0.6 + 3.2 * len(panels)), dpi=130, layout="constrained")
    grid = figure.subplots(len(panels), 2, squeeze=False, sharey="row")
    for (title, inside), (left, right) in zip(panels.items(), grid, strict=True):
        for line in inside:
            at = order.index(line.labels["method"] if by_method else _choice(line))
            drawn = look(at) | {"label": order[at] or line.labels["method"]}
            _draw(left, line, "round", 1, drawn)
            _draw(right, line, "up_bytes", 1e6, drawn)
        _frame(left, right, inside, title)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _choice(line: Line) -> str:
    """The varied fields and their values, as a title."""
    varied = {key: value for key, value in line.labels.items() if key != "method"}
    return ", ".join(
        f"{key.rpartition('.')[2]} = {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in varied.items()
    )


def _draw(axes: Axes, line: Line, over: str, unit: float, drawn: dict[str, Any]) -> None:
    histories = [evaluated(run) for run in line.runs]
    x = np.mean([[h[over] for h in history] for history in histories], axis=0) / unit
    values = np.array([scores(history, line.metric) for history in histories])
    mean, _, half = spread(values)
    axes.plot(x, mean, marker="o", ms=3, **drawn)
    if len(values) > 1:
        axes.plot(x, values.T, color=drawn["color"], ls=drawn["ls"], lw=0.6, alpha=0.5)
        axes.fill_between(x, mean - half, mean + half, color=drawn["color"], alpha=0.13, lw=0)


def _frame(left: Axes, right: Axes, lines: Sequence[Line], title: str) -> None:
    runs = [run for line in lines for run in line.runs]
    values = [x for line in lines for run in line.runs for x in scores(evaluated(run), line.metric)]
    # A seed that chooses the test examples chooses their most frequent class too: the mean.
    beat = [found for _, r in runs if (found := to_beat(r["summary"], lines[0].metric))]
    if len(beat) == len(runs):
        values.append(float(np.mean([height for _, height in beat])))
        last = max(h["round"] for run in runs for h in evaluated(run))
        level(left, values[-1], beat[0][0], at=last)
    reached = [value for value in values if math.isfinite(value)]
    if reached:
        low, high = min(reached), max(reached)
        margin = 0.08 * (high - low) or 0.05
        left.set_ylim(low - margin, high + margin)
    left.set(xlabel="round", ylabel=f"test {lines[0].metric}")
    right.set(xlabel="MB sent by all clients so far")
    left.set_title(title, loc="left", fontsize=9)
    style(left)
    style(right, rounds=False)
