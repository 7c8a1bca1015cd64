"""Table and figure of the AG News comparison, from the result files alone."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.ag_news import METHODS, RESULTS, RUNS, traffic_figure
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora.runs.figure_style import draw_seeds, method_styles, style_axes


def records(method: str) -> list[dict[str, Any]]:
    """The finished runs of a method, in the order of their seeds."""
    runs = [r for r in json_lines.read(RUNS) if r["config"]["federation"]["method"] == method]
    return sorted(runs, key=lambda run: run["config"]["seed"])


def curve(runs: list[dict[str, Any]], name: str) -> tuple[list[int], np.ndarray]:
    """The evaluated rounds and a metric in them, ``[seeds, rounds]``."""
    tested = [[h for h in run["history"] if name in h] for run in runs]
    return [h["round"] for h in tested[0]], np.array([[h[name] for h in hs] for hs in tested])


def table() -> str:
    """Tabulate the comparison."""
    columns = ["method", "learning rate", "test accuracy, round 5", "round 10", "round 20"]
    columns += ["seeds", "MB up", "MB down"]
    lines = []
    for label, method in METHODS.items():
        runs = records(method)
        if not runs:
            continue
        rounds, values = curve(runs, "accuracy")
        shown = [_spread(values[:, rounds.index(t)]) for t in (5, 10, 20)]
        rates = sorted({run["config"]["local"]["learning_rate"] for run in runs})
        sent = [np.mean([run["summary"][f"{way}_bytes"] for run in runs]) for way in ("up", "down")]
        cells = [f"{label} `{method}`", ", ".join(f"{rate:g}" for rate in rates), *shown]
        cells += [str(len(runs)), *(f"{x / 1e6:.0f}" for x in sent)]
        lines.append(cells)
    return as_table(columns, lines)


def _spread(values: np.ndarray) -> str:
    """Per cent, with the standard deviation if there are several values."""
    text = f"{100 * values.mean():.1f}"
    return text if len(values) == 1 else f"{text} ± {100 * values.std(ddof=1):.1f}"


def draw(path: pathlib.Path) -> None:
    """Draw test accuracy over the rounds, one curve per method."""
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (label, method), style in zip(
        METHODS.items(), method_styles([*METHODS.values()]), strict=True
    ):
        if runs := records(method):
            rounds, values = curve(runs, "accuracy")
            draw_seeds(axes, rounds, 100 * values, style, label=label, bounds=(0, 100))
    axes.set(xlabel="round", ylabel="test accuracy, %")
    style_axes(axes)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def main() -> None:
    """Write the table and the figures, and put the table on its page."""
    text = table()
    (RESULTS / "table.md").write_text(text)
    draw(RESULTS / "accuracy.png")
    traffic_figure.draw({label: records(METHODS[label])[0] for label in traffic_figure.SHOWN})
    put("ag_news", text)
    print(text)


if __name__ == "__main__":
    main()
