"""Style of all figures: one colour, line and marker per method, intervals over seeds, axes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from fedjax_lora import methods
from fedjax_lora.core import registry
from fedjax_lora.runs.sweep.intervals import spread

# Okabe & Ito (2008), for series that are not methods.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
BLUE, ORANGE, GREEN = COLOURS[:3]
GREY = "#666666"
_UNKNOWN_METHODS = ("#CC79A7", "#7F7F7F", "#B5A100")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v")

MIN_BAND_SEEDS = 4
"""With fewer seeds an interval is wider than the differences; single runs are drawn instead."""


class MethodStyle(NamedTuple):
    """Appearance of a method in every figure."""

    label: str
    colour: str
    dashes: str
    marker: str
    reading: str = ""  # the option without whose value the label says too little


# Three sets of colours, for solid, dashed and dotted lines. Within a set, any two colours differ by
# at least 0.08 (solid, dotted) and 0.13 (dashed) in OKLab, also under simulated protanopia,
# deuteranopia and tritanopia (Machado et al., 2009); between the sets by at least 0.05, where the
# line and the marker differ too.
METHOD_STYLES = {
    "fedit": MethodStyle("FedIT", "#222222", "-", "o"),
    "zero_padding": MethodStyle("zero padding", "#56B4E9", "-", "^", reading="empty"),
    "hetlora": MethodStyle("HetLoRA", "#1A1AB0", "-", "v"),
    "masked_mean": MethodStyle("masked mean", "#9D2762", "-", "^"),
    "replication": MethodStyle("replication", "#B04CE0", "-", "v"),
    "fed_plora": MethodStyle("Fed-PLoRA", "#0072B2", "-", "o"),
    "hlora": MethodStyle("HLoRA", "#009E73", "-", "v"),
    "flexlora": MethodStyle("FlexLoRA", "#D55E00", "-", "^"),
    "flora": MethodStyle("FLoRA", "#E69F00", "-", "o"),
    "raflora": MethodStyle("raFLoRA", "#6B4E00", "-", "o"),
    "rb_lora": MethodStyle("RB-LoRA", "#3B0000", "--", "s"),
    "florist": MethodStyle("FLoRIST", "#7689FF", "--", "D"),
    "fslora": MethodStyle("FSLoRA", "#B14E27", "--", "s"),
    "ffa_lora": MethodStyle("FFA-LoRA", "#9D769D", "--", "D"),
    "rolora": MethodStyle("RoLoRA", "#140062", "--", "s"),
    "lora_a2": MethodStyle("LoRA-A²", "#EB7600", "--", "D"),
    "fedex_lora": MethodStyle("FedEx-LoRA", "#623B89", "--", "s"),
    "lora_fair": MethodStyle("LoRA-FAIR", "#D89DB1", "--", "D"),
    "fedsa_lora": MethodStyle("FedSA-LoRA", "#273BEB", "--", "s"),
    "fedrora": MethodStyle("FedRoRA", "#762700", "--", "D"),
    "fedhl": MethodStyle("FedHL", "#76CE66", ":", "X"),
    "fedmomentum": MethodStyle("FedMomentum", "#8C4B91", ":", "*"),
    "eclora": MethodStyle("ECLoRA", "#5A825D", ":", "X"),
    "fedsvd": MethodStyle("FedSVD", "#B48AB8", ":", "*"),
    "fedrot_lora": MethodStyle("FedRot-LoRA", "#823740", ":", "X"),
    "frlora": MethodStyle("FRLoRA", "#E251F2", ":", "*"),
    "ravan": MethodStyle("RAVAN", "#412A6F", ":", "P"),
    "fed_sb": MethodStyle("Fed-SB", "#6336BF", ":", "P"),
}

_SHADES = (0.0, -0.45, 0.4, -0.7)
"""Variants of a method: darker (negative) or lighter than its colour."""

_SHADES_OF_DARK = (0.0, 0.35, 0.6, 0.2)
"""The same for colours that cannot be darkened."""


UNOWNED = {"keep": "unowned kept", "zero": "unowned zeroed"}
"""What zero padding does to components that nobody in a cohort owns: two methods of one name."""


def method_label(spec: str) -> str:
    """Return the published name of a method; of zero padding with its reading, see `UNOWNED`.

    Args:
      spec: a method with or without options.

    >>> method_label("fed_plora(selection='prefix')")
    'Fed-PLoRA'
    >>> method_label("zero_padding(empty='zero')")
    'zero padding (unowned zeroed)'
    """
    name = registry.parse(spec)[0]
    if name not in METHOD_STYLES:
        return name
    style = METHOD_STYLES[name]
    if not style.reading:
        return style.label
    value = registry.with_defaults(spec, methods.METHODS, "method")[style.reading]
    return f"{style.label} ({UNOWNED[value]})"


def series_style(number: int) -> dict[str, Any]:
    """Line style of a series that is not a method; beyond seven series the dashes change.

    >>> series_style(8)
    {'color': '#D55E00', 'ls': '--', 'marker': 's'}
    """
    return {
        "color": COLOURS[number % len(COLOURS)],
        "ls": DASHES[number // len(COLOURS) % len(DASHES)],
        "marker": MARKERS[number // len(COLOURS) % len(MARKERS)],
    }


def method_styles(specs: Sequence[str]) -> list[dict[str, Any]]:
    """Line styles of the methods of one figure.

    A method that appears several times, e.g. with several options, keeps its colour: the variants
    are shades of it with different dashes and markers. Methods without an entry in `METHOD_STYLES`
    are dash-dotted.

    >>> [style["color"] for style in method_styles(["hlora", "fed_plora"])]
    ['#009E73', '#0072B2']
    """
    counts: dict[str, int] = {}
    styles = []
    for spec in specs:
        name = registry.parse(spec)[0]
        variant = counts[name] = counts.get(name, -1) + 1
        unknown = [other for other in counts if other not in METHOD_STYLES]
        style = METHOD_STYLES.get(name)
        if style is None:
            colour = _UNKNOWN_METHODS[unknown.index(name) % len(_UNKNOWN_METHODS)]
            style = MethodStyle(name, colour, "-.", "P")
        styles.append(_variant(style, variant))
    return styles


def _variant(style: MethodStyle, variant: int) -> dict[str, Any]:
    dashes = DASHES[(DASHES.index(style.dashes) + variant) % len(DASHES)]
    marker = MARKERS[variant % len(MARKERS)] if variant else style.marker
    rgb = np.array(matplotlib.colors.to_rgb(style.colour))
    shades = _SHADES_OF_DARK if rgb.max() < 0.2 else _SHADES
    return {"color": _shade(rgb, shades[variant % len(shades)]), "ls": dashes, "marker": marker}


def _shade(rgb: np.ndarray, amount: float) -> str:
    """Mix a colour with white (positive amount) or black (negative)."""
    target = 1.0 if amount > 0 else 0.0
    return matplotlib.colors.to_hex(tuple(rgb * (1 - abs(amount)) + target * abs(amount))).upper()


def draw_seeds(
    axes: Axes,
    x: Sequence[float],
    values: ArrayLike,
    style: Mapping[str, Any],
    *,
    label: str,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    shift: float | None = None,
) -> None:
    """Draw the mean over seeds with single runs or, from `MIN_BAND_SEEDS` seeds, an interval.

    The interval is Student's 95 % interval of the mean: a band, or error bars, which stay readable
    where many curves are close.

    Args:
      axes: the axes.
      x: positions, ``[points]``.
      values: one curve per seed, ``[seeds, points]``.
      style: from `method_styles` or `series_style`.
      label: entry in the legend.
      bounds: possible range of the values; intervals are clipped to it.
      shift: draw error bars, shifted by so much along x, instead of a band.
    """
    curves = np.asarray(values, np.float64)
    mean, _, half = spread(curves)
    axes.plot(x, mean, ms=4, lw=1.6, label=label, **style)
    if len(curves) >= MIN_BAND_SEEDS:
        low, high = np.clip(mean - half, *bounds), np.clip(mean + half, *bounds)
        if shift is None:
            axes.fill_between(x, low, high, color=style["color"], alpha=0.1, lw=0)
        else:
            axes.vlines(np.asarray(x) + shift, low, high, color=style["color"], lw=1, alpha=0.7)
    elif len(curves) > 1:
        axes.plot(x, curves.T, color=style["color"], ls=style["ls"], lw=0.6, alpha=0.5)


def seeds_caption(counts: Sequence[int]) -> str:
    """Describe what `draw_seeds` shows for these numbers of seeds.

    >>> seeds_caption([3, 3])
    'thick lines are means over 3 seeds, thin lines single runs'
    """
    low, high = min(counts), max(counts)
    if high == 1:
        return "one seed"
    seeds = f"{high}" if low == high else f"{low} to {high}"
    if high < MIN_BAND_SEEDS:
        return f"thick lines are means over {seeds} seeds, thin lines single runs"
    return f"lines are means over {seeds} seeds with 95 % intervals of the mean"


def style_axes(axes: Axes, *, rounds: bool = True) -> None:
    """Apply the common look: a light grid, two spines, integer ticks on an x axis of rounds."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    if rounds:
        axes.locator_params(axis="x", integer=True)


def reference_line(axes: Axes, height: float, text: str, *, at: float) -> None:
    """Draw a dashed horizontal line with a label that ends at position ``at``."""
    axes.axhline(height, color=GREY, ls="--", lw=1)
    axes.annotate(
        text, (at, height), (0, 2), textcoords="offset points",
        color=GREY, ha="right", va="bottom", fontsize=8,
    )  # fmt: skip


def panels(count: int, *, columns: int = 3, width: float = 4.2, height: float = 3.2) -> tuple:
    """Create a figure with a grid of panels.

    Returns:
      The figure and the axes of its ``count`` panels, row by row.
    """
    columns = min(count, columns)
    rows = -(-count // columns)
    size = (max(width * columns, 7), height * rows + 0.6)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    return figure, [figure.add_subplot(rows, columns, n + 1) for n in range(count)]


def shared_legend(figure: Figure, axes: Sequence[Axes], *, columns: int = 3) -> None:
    """Put one legend for all axes above the panels."""
    entries = {
        label: handle
        for one in axes
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        entries.values(), entries, loc="outside upper center", ncols=columns, frameon=False,
        fontsize=8,
    )  # fmt: skip
