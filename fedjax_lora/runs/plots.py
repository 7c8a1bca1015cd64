"""Figures of a run."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe-Ito: told apart by everybody.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
BLUE, ORANGE = COLOURS[:2]
GREY = "#666666"
DASHES = ("-", "--", ":", "-.")


class Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def look(n: int) -> dict[str, Any]:
    """Colour and line of curve ``n``: more curves than colours are told apart by the line.

    >>> look(8)
    {'color': '#D55E00', 'ls': '--'}
    """
    return {
        "color": COLOURS[n % len(COLOURS)],
        "ls": DASHES[n // len(COLOURS) % len(DASHES)],
    }


def style(axes: Axes, *, rounds: bool = True) -> None:
    """A light grid and no frame; whole numbers on an x axis of rounds."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if rounds:
        axes.locator_params(axis="x", integer=True)


def level(axes: Axes, height: float, text: str, *, at: float) -> None:
    """A dashed line to compare with, and what it is, ending above ``at``."""
    axes.axhline(height, color=GREY, ls="--", lw=1)
    axes.annotate(text, (at, height), color=GREY, ha="right", va="bottom", fontsize=8)


def to_beat(summary: Mapping[str, Any], metric: str) -> tuple[str, float] | None:
    """What a run's metric is to be compared with, in words and as a number.

    None if it is unknown, or not finite.

    >>> to_beat({"start_perplexity": 9.5}, "perplexity")
    ('before training', 9.5)
    """
    if summary.get(f"start_{metric}") is not None:
        return "before training", summary[f"start_{metric}"]
    if metric == "accuracy" and "majority_accuracy" in summary:
        return "majority class", summary["majority_accuracy"]
    return None


def history(
    records: Sequence[Mapping[str, Any]],
    *,
    metric: str,
    title: str,
    beat: tuple[str, float] | None = None,
) -> Figure:
    """Draw the test metric (and what it is to beat) and the losses over the rounds."""
    figure = Picture(figsize=(8, 3.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    tested = [r for r in records if metric in r]
    left.plot([r["round"] for r in tested], [r[metric] for r in tested], "o-", color=BLUE, ms=3)
    if beat is not None:
        level(left, beat[1], beat[0], at=records[-1]["round"])
    left.set(xlabel="round", ylabel=f"test {metric}")
    right.plot([r["round"] for r in records], [r["train_loss"] for r in records],
               color=ORANGE, label="training (clients)")  # fmt: skip
    right.plot([r["round"] for r in tested], [r["loss"] for r in tested],
               "o-", color=BLUE, ms=3, label="test (global model)")  # fmt: skip
    right.set(xlabel="round", ylabel="loss")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        style(axes)
    figure.suptitle(title, fontsize=10)
    return figure
