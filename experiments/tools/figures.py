"""Figures of studies, from the result files alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.tools.json_lines import Record
from experiments.tools.study import Part, Results, is_training_run
from fedjax_lora.runs.figure_style import (
    GREY,
    draw_seeds,
    method_styles,
    panels,
    reference_line,
    shared_legend,
    style_axes,
)

Number = Callable[[dict[str, Any]], float | None]
"""The plotted number of a round's record; None if the round has no such number."""

PERCENT = (0.0, 100.0)
TASK_NAMES = {
    "ag_news": "AG News",
    "dbpedia_14": "DBpedia",
    "mnli": "MNLI",
    "mrpc": "MRPC",
    "qnli": "QNLI",
    "qqp": "QQP",
    "rte": "RTE",
    "sst2": "SST-2",
}


def accuracy_figure(found: Results, part: Part) -> Figure | None:
    """Draw test accuracy over the rounds, one panel per task; None if no run is finished."""
    runs = {task: arms for task in part.tasks if (arms := finished(found, part, task))}
    if not runs:
        return None
    figure, axes_of_tasks = panels(len(runs))
    for axes, (task, arms) in zip(axes_of_tasks, runs.items(), strict=True):
        draw_arms(axes, part, arms, _accuracy_percent, bounds=PERCENT)
        summaries = [run["summary"] for of_arm in arms.values() for run in of_arm]
        majority = 100 * float(np.mean([summary["majority_accuracy"] for summary in summaries]))
        last = max(run["history"][-1]["round"] for of_arm in arms.values() for run in of_arm)
        _majority_class(axes, majority, last)
        axes.set(xlabel="round", ylabel="test accuracy, %")
        axes.set_xticks(_evaluated(arms))
        axes.set_title(TASK_NAMES.get(task, task), fontsize=10)
    shared_legend(figure, axes_of_tasks)
    return figure


def _evaluated(arms: Mapping[str, Sequence[Record]]) -> list[int]:
    """The evaluated rounds of all runs."""
    runs = [run for of_arm in arms.values() for run in of_arm]
    return sorted({h["round"] for run in runs for h in run["history"] if "accuracy" in h})


def _accuracy_percent(entry: dict[str, Any]) -> float | None:
    return 100 * entry["accuracy"] if "accuracy" in entry else None


def _majority_class(axes: Axes, height: float, last: float) -> None:
    """Draw the majority class as a line if it is near the curves, else as a note."""
    low, high = axes.get_ylim()
    if height > low - 0.2 * (high - low):
        reference_line(axes, height, "majority class", at=last)
    else:
        text = f"majority class: {height:.0f} %"
        corner = {"transform": axes.transAxes, "ha": "right", "fontsize": 8, "color": GREY}
        axes.text(0.98, 0.02, text, **corner)


def finished(found: Results, part: Part, task: str) -> dict[str, list[Record]]:
    """The finished training runs by arm; arms without any are left out."""
    runs = {
        arm: [run for run in found.runs(part.name, arm, task).values() if is_training_run(run)]
        for arm in part.arms
    }
    return {arm: of_arm for arm, of_arm in runs.items() if of_arm}


def arm_styles(part: Part) -> dict[str, dict[str, Any]]:
    """Line styles of the arms, by the methods of their runs."""
    task, seed = part.tasks[0], part.seeds[0]
    specs = [part.config(arm, task, seed).federation.method for arm in part.arms]
    return dict(zip(part.arms, method_styles(specs), strict=True))


def draw_arms(
    axes: Axes,
    part: Part,
    arms: Mapping[str, Sequence[Record]],
    number: Number,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> None:
    """Draw a number over the rounds, one curve per arm.

    Args:
      axes: the axes.
      part: part of the arms.
      arms: the runs by arm.
      number: the plotted number.
      bounds: its possible values.
    """
    styles = arm_styles(part)
    for position, (arm, runs) in enumerate(arms.items()):
        rounds, values = over_rounds(runs, number)
        shift = 0.02 * rounds[-1] * (position / (len(arms) - 1) - 0.5) if len(arms) > 3 else None
        draw_seeds(axes, rounds, values, styles[arm], label=arm, bounds=bounds, shift=shift)
    style_axes(axes)


def over_rounds(runs: Sequence[Record], number: Number) -> tuple[list[int], np.ndarray]:
    """The rounds in which all runs have the number, and the numbers ``[runs, rounds]``."""
    found = [
        {h["round"]: x for h in run["history"] if (x := number(h)) is not None} for run in runs
    ]
    rounds = sorted(set.intersection(*map(set, found)))
    return rounds, np.array([[by_round[t] for t in rounds] for by_round in found])
