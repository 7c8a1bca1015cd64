"""Figures of reruns, from the result files alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.tools.json_lines import Record
from experiments.tools.study import Part, Results, is_training_run
from fedjax_lora.runs.plots import look, style
from fedjax_lora.runs.sweep.statistics import spread

WIDTH = 4.2  # inches of a panel
COLUMNS = 3

Number = Callable[[dict[str, Any]], float | None]
"""What a figure shows of a round's record; None where the round has no such number."""


def accuracy_figure(found: Results, part: Part) -> Figure | None:
    """Test accuracy over the rounds, a panel per task; None if no run is finished."""
    runs = {task: arms for task in part.tasks if (arms := finished(found, part, task))}
    if not runs:
        return None
    figure, panels = sheet(len(runs), COLUMNS)
    for axes, (task, arms) in zip(panels, runs.items(), strict=True):
        every = [run for of_arm in arms.values() for run in of_arm]
        curves(axes, part, arms, lambda h: 100 * h["accuracy"] if "accuracy" in h else None)
        majority = 100 * np.mean([run["summary"]["majority_accuracy"] for run in every])
        axes.set(xlabel="round", ylabel="test accuracy, %")
        axes.set_title(f"{task} (majority class: {majority:.0f} %)", fontsize=10)
    legend(figure, panels)
    return figure


def finished(found: Results, part: Part, task: str) -> dict[str, list[Record]]:
    """The finished runs of every arm that has any."""
    runs = {
        arm: [run for run in found.runs(part.name, arm, task).values() if is_training_run(run)]
        for arm in part.arms
    }
    return {arm: of_arm for arm, of_arm in runs.items() if of_arm}


def sheet(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side, at most so many in a row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(WIDTH * columns, 7), 3.2 * rows + 0.6), dpi=130)
    figure.set_layout_engine("constrained")
    return figure, [figure.add_subplot(rows, columns, n + 1) for n in range(count)]


def curves(axes: Axes, part: Part, arms: dict[str, list[Record]], number: Number) -> None:
    """A line per arm, the mean over its seeds, and a band of one standard deviation."""
    order = [*part.arms]
    for arm, runs in arms.items():
        drawn = look(order.index(arm))
        rounds, values = over_rounds(runs, number)
        mean, deviation, _ = spread(values)
        axes.plot(rounds, mean, marker="o", ms=3, label=arm, **drawn)
        if len(runs) > 1:
            low, high = mean - deviation, mean + deviation
            axes.fill_between(rounds, low, high, color=drawn["color"], alpha=0.12, lw=0)
    style(axes)


def over_rounds(runs: Sequence[Record], number: Number) -> tuple[list[int], np.ndarray]:
    """The rounds in which all runs have the number, and the numbers ``[runs, rounds]``."""
    found = [
        {h["round"]: x for h in run["history"] if (x := number(h)) is not None} for run in runs
    ]
    rounds = sorted(set.intersection(*map(set, found)))
    return rounds, np.array([[by_round[t] for t in rounds] for by_round in found])


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend above all panels."""
    entries = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        entries.values(), entries, loc="outside upper center", ncols=3, frameon=False, fontsize=8
    )
