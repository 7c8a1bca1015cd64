"""Figures of a run."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe-Ito: told apart by everybody


def history(
    records: Sequence[Mapping[str, Any]],
    path: str | pathlib.Path,
    *,
    metric: str,
    title: str,
    majority: float | None = None,
) -> None:
    """Draw the test metric (and the majority class's) and the losses over the rounds as a PNG."""
    figure = Figure(figsize=(8, 3.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    tested = [r for r in records if metric in r]
    left.plot([r["round"] for r in tested], [r[metric] for r in tested], "o-", color=BLUE, ms=3)
    if majority is not None:
        left.axhline(majority, color=GREY, ls="--", lw=1)
        left.annotate("majority class", (records[-1]["round"], majority), color=GREY,
                      ha="right", va="bottom", fontsize=8)  # fmt: skip
    left.set(xlabel="round", ylabel=f"test {metric}")
    right.plot([r["round"] for r in records], [r["train_loss"] for r in records],
               color=ORANGE, label="training (clients)")  # fmt: skip
    right.plot([r["round"] for r in tested], [r["loss"] for r in tested],
               "o-", color=BLUE, ms=3, label="test (global model)")  # fmt: skip
    right.set(xlabel="round", ylabel="loss")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)
