"""Figures of a run."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import History, Record
from fedjax_lora.core.safe_text import printable
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.figure_style import BLUE, ORANGE, reference_line, style_axes


class Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def to_beat(summary: Record, metric: str) -> tuple[str, float] | None:
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
    config: RunConfig,
    metric: str,
    records: History,
    summary: Record,
) -> Figure:
    """Draw the test metric and the losses over the rounds.

    Args:
      config: the run, whose task and method are the title.
      metric: metric of the task.
      records: one per round.
      summary: numbers of the whole run, with what the metric is to beat; may be empty.
    """
    beat = to_beat(summary, metric)
    figure = Picture(figsize=(8, 3.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    tested = [r for r in records if metric in r]
    left.plot([r["round"] for r in tested], [r[metric] for r in tested], "o-", color=BLUE, ms=3)
    if beat is not None:
        reference_line(left, beat[1], beat[0], at=records[-1]["round"])
    left.set(xlabel="round", ylabel=f"test {metric}{_examples(tested)}")
    right.plot([r["round"] for r in records], [r["train_loss"] for r in records],
               color=ORANGE, label="training (clients)")  # fmt: skip
    right.plot([r["round"] for r in tested], [r["loss"] for r in tested],
               "o-", color=BLUE, ms=3, label="test (global model)")  # fmt: skip
    right.set(xlabel="round", ylabel="loss")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        style_axes(axes)
    title = printable(f"{config.data.task}: {config.federation.method}", longest=120)
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _examples(tested: History) -> str:
    """Say how many test examples the scores are of, where the last one is of more."""
    counts = [record.get("eval_examples") for record in tested]
    if len(set(counts)) < 2:
        return ""
    return f"\n({counts[0]:,} examples, last round {counts[-1]:,})"


# Okabe & Ito's colours, which people with any common colour blindness tell apart. The order makes
# neighbours in a bar differ most under simulated protan, deutan and tritan vision (Machado et al.
# 2009; distance in OKLab at least 0.11). Light tints follow where there are more classes.
_HUES = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#F0E442", "#CC79A7")
_DARK, _OTHER = "#333333", "#BBBBBB"


MOST_BARS = 200
"""Clients that are drawn as bars in their order; more are sorted, and drawn without gaps."""

MOST_COLUMNS = 1600
"""Columns that the figure has room for; of more clients, evenly spaced ones are drawn."""


def draw(counts: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Write a PNG of who has how many examples of which class.

    More classes than there are colours to tell apart are folded: the rarest share one grey. More
    clients than `MOST_BARS` are sorted by their most frequent class and then by size, so that
    clients alike stand together where each is narrower than a pixel.

    Args:
      counts: `int[N, C]`, as `class_counts` returns them; clients are drawn in this order.
      classes: `C` class names.
      path: the file to write.

    Raises:
      InputError: the names do not fit the counts, or the file cannot be written.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] != len(classes):
        raise InputError(f"Counts of shape {counts.shape} do not fit {len(classes)} class names.")
    many = len(counts) > MOST_BARS
    if many:
        counts = counts[np.lexsort((-counts.sum(1), counts.argmax(1)))]
    # A Figure of its own, not pyplot: no global state, no window, any thread.
    figure = Figure(figsize=(min(14.0, max(7.0, 3.5 + 0.08 * len(counts))), 4.0), dpi=150)
    axes = figure.add_subplot()
    drawn = np.linspace(0, len(counts) - 1, min(len(counts), MOST_COLUMNS)).round().astype(int)
    layers = [(name, colour, of[drawn]) for name, colour, of in _layers(counts, classes)]
    areas = _draw_layers(axes, drawn, layers, gaps=not many)
    order = ", by most frequent class, then by size" if many else ""
    axes.set(xlabel=f"client{order}", ylabel="examples", xlim=(-0.7, len(counts) - 0.3))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(  # from the top down, like the bars
        *zip(*areas[::-1], strict=True), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a class may be called $x$
    try:
        figure.savefig(path, format="png", bbox_inches="tight")
    except OSError as error:
        raise InputError(f"The figure {path} cannot be written ({error}).") from error


def _draw_layers(
    axes: Axes,
    clients: np.ndarray,
    layers: Sequence[tuple[str, str, np.ndarray]],
    *,
    gaps: bool,
) -> list[tuple[Any, str]]:
    """Draw layers on top of each other, one polygon each; returns the areas and their names."""
    # Per client the left and right edge of its bar, and with gaps the zero height beside them.
    edges = (-0.4, -0.4, 0.4, 0.4) if gaps else (-0.5, 0.5)
    inside = (0, 1, 1, 0) if gaps else (1, 1)
    spacing = 1 if len(clients) < 2 else (clients[-1] - clients[0]) / (len(clients) - 1)
    x = (clients[:, None] + spacing * np.array(edges)).ravel()
    base, areas = np.zeros(len(x)), []
    for name, colour, height in layers:
        top = base + (height[:, None] * np.array(inside)).ravel()
        areas.append(
            (axes.fill_between(x, base, top, color=colour, linewidth=0, antialiased=gaps), name)
        )
        base = top
    return areas


def _layers(counts: np.ndarray, classes: Sequence[str]) -> list[tuple[str, str, np.ndarray]]:
    """(name, colour, counts `int[N]`) from the bottom up, in class order, the folded rest last."""
    colours = [*_HUES, _DARK, *(_tint(hue) for hue in _HUES)]
    kept = np.arange(len(classes))
    if len(classes) > len(colours):
        common = np.argsort(-counts.sum(0), kind="stable")[: len(colours)]
        kept = np.sort(common)
    layers = [
        (printable(str(classes[int(c)]), longest=40), colours[i], counts[:, c])
        for i, c in enumerate(kept)
    ]
    folded = np.setdiff1d(np.arange(len(classes)), kept)
    if len(folded):
        layers.append((f"{len(folded)} other classes", _OTHER, counts[:, folded].sum(1)))
    return layers


def _tint(colour: str) -> str:
    red, green, blue = (0.45 * part + 0.55 for part in matplotlib.colors.to_rgb(colour))
    return matplotlib.colors.to_hex((red, green, blue))
