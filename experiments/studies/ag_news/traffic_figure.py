"""Test accuracy against traffic: the figure of the README, from the result files alone."""

import itertools
import pathlib
from typing import Any

from matplotlib.figure import Figure

from experiments.studies.ag_news import METHODS, ZEROS
from fedjax_lora.runs.figure_style import method_styles, style_axes

PATH = pathlib.Path(__file__).parents[3] / "docs" / "images" / "accuracy_against_megabytes.png"
SHOWN = (ZEROS, "HLoRA", "FlexLoRA", "Fed-PLoRA", "FedIT, rank 32 everywhere", "FLoRA")
LABELS = {"FedIT, rank 32 everywhere": "FedIT, rank 32 for all"}
MEGABYTE = 1e6
Record = dict[str, Any]


def traffic(run: Record) -> tuple[list[float], list[float]]:
    """Megabytes uploaded and downloaded, and test accuracy in per cent, by evaluated round."""
    history = run["history"]
    total = itertools.accumulate(record["up_bytes"] + record["down_bytes"] for record in history)
    points = [
        (sent / MEGABYTE, 100 * record["accuracy"])
        for sent, record in zip(total, history, strict=True)
        if "accuracy" in record
    ]
    megabytes, accuracy = zip(*points, strict=True)
    return list(megabytes), list(accuracy)


def draw(runs: dict[str, Record], path: pathlib.Path = PATH) -> None:
    """A line per method: test accuracy against the traffic of all clients so far.

    Args:
      runs: one finished run per method, by its label in `experiments.studies.ag_news.METHODS`.
      path: where the figure is written.
    """
    figure = Figure(figsize=(8, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    styles = method_styles([METHODS[label] for label in SHOWN])
    for label, style in zip(SHOWN, styles, strict=True):
        axes.plot(*traffic(runs[label]), ms=5, lw=1.8, label=LABELS.get(label, label), **style)
    axes.set(
        xscale="log",
        xlabel="uploaded and downloaded by all clients so far, MB (log scale)",
        ylabel="test accuracy, %",
        title="AG News, 100 clients of ranks 4 to 32, one seed; a point every 5 rounds",
    )
    axes.set_xticks([50, 100, 200, 500, 1000], ["50", "100", "200", "500", "1000"])
    axes.minorticks_off()
    style_axes(axes, rounds=False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path)
