"""Table and figure of the measurements, from the result files alone."""

import functools
import json
import operator
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.studies.noise import FORMER, METHODS, RESULTS, RUNS
from experiments.tools import run_store
from experiments.tools.markdown import as_table, put
from fedjax_lora import methods
from fedjax_lora.core import registry
from fedjax_lora.runs.figure_style import (
    BLUE,
    GREY,
    UNOWNED,
    method_label,
    method_styles,
    panels,
    shared_legend,
    style_axes,
)

NOISE = (
    "zero_padding",
    "replication",
    "fed_plora",
    "hlora",
    "flora",
    "fedex_lora",
    FORMER["fslora"],
)
COLLAPSE = ("zero_padding", "replication", "hlora", "raflora", "fed_plora")
LOWEST = 4  # rank in the federation
NEGLIGIBLE = 1e-3  # noise relative to the ideal update that is drawn as zero


@functools.cache
def records() -> dict[str, dict[str, Any]]:
    """The finished runs by method, with the defaults that it had then."""
    found = run_store.finished(RUNS)
    return {config.federation.method: run for config, run in found.items()}


def history(method: str) -> list[dict[str, Any]]:
    """The rounds of a method; empty if it has not been run."""
    return records()[method]["history"] if method in records() else []


def seconds(method: str) -> float:
    """Median time of the server's step, without the first round, which compiles."""
    return float(np.median(records()[method]["server_seconds"][1:]))


def table() -> str:
    """Means over the rounds after the first; noise relative to the round's ideal update."""
    columns = ["method", "initialization noise", "aggregation noise"]
    columns += ["MB up", "MB down", "server ms", "client MB"]
    lines = []
    for method in METHODS:
        rounds = history(method)[1:]
        if not rounds:
            continue
        mean = {name: np.mean([h[name] for h in rounds]) for name in rounds[0] if name in SHOWN}
        name = _named(method) + ("" if methods.takes_mixed_ranks(method) else " (rank 32)")
        cells = [name, *(_ratio(mean[f"{kind}_ratio"]) for kind in ("init", "agg"))]
        cells += [f"{mean[f'{way}_bytes'] / 1e6:.1f}" for way in ("up", "down")]
        cells += [f"{1000 * seconds(method):.0f}", f"{mean['client_bytes_mean'] / 1e6:.1f}"]
        lines.append(cells)
    return as_table(columns, lines)


def _named(method: str) -> str:
    """The method, with its reading of components that nobody in a cohort owns."""
    empty = registry.with_defaults(method, methods.METHODS, "method").get("empty")
    return f"`{method}`" + (f" ({UNOWNED[empty]})" if empty in UNOWNED else "")


SHOWN = ("init_ratio", "agg_ratio", "up_bytes", "down_bytes", "client_bytes_mean")


def _ratio(value: float) -> str:
    return "0" if value == 0 else f"{value:.3f}" if value >= 5e-4 else f"{value:.0e}"


def draw(path: pathlib.Path) -> None:
    """Draw both noises, the energy beyond the lowest rank, and the dilution law."""
    figure, (init, aggregation, energy, dilution) = panels(4, columns=2)
    _noise(init, "init_ratio", "initialization noise")
    _noise(aggregation, "agg_ratio", "aggregation noise")
    _curves(energy, COLLAPSE, lambda h: 100 * h["energy"][LOWEST - 1])
    energy.set(ylabel="share of the energy, %", ylim=(0, None))
    energy.set_title(f"global adapter beyond component {LOWEST}", fontsize=10)
    for axes in (init, aggregation, energy):
        axes.set_xlabel("round")
    shared_legend(figure, (init, aggregation, energy), columns=4)
    _dilution(dilution)
    figure.savefig(path)


def _noise(axes: Axes, name: str, title: str) -> None:
    _curves(axes, NOISE, operator.itemgetter(name))
    axes.set_yscale("symlog", linthresh=NEGLIGIBLE)
    axes.set_ylim(bottom=-NEGLIGIBLE / 5)
    axes.set_ylabel("relative to the ideal update")
    axes.set_title(title, fontsize=10)
    zero = [m for m in NOISE if max(h[name] for h in history(m)) < NEGLIGIBLE]
    text = ", ".join(map(method_label, zero))
    axes.annotate(text, (5, 0), (0, 6), textcoords="offset points", ha="right", fontsize=8)


def _curves(axes: Axes, chosen: Sequence[str], value: Callable[[dict[str, Any]], float]) -> None:
    for method, style in zip(chosen, method_styles(chosen), strict=True):
        rounds = [h["round"] for h in history(method)]
        values = [value(h) for h in history(method)]
        axes.plot(rounds, values, ms=4, lw=1.6, label=method_label(method), **style)
    style_axes(axes)


def _dilution(axes: Axes) -> None:
    sizes = json.loads((RESULTS / "dilution.json").read_text())
    counts = [int(k) for k in sizes]
    ratio = [x["zero_padding"] / x["replication"] for x in sizes.values()]
    predicted = [k**-2 for k in counts]
    axes.loglog(counts, predicted, color=GREY, lw=1, label="predicted, $1/K^2$")
    axes.loglog(counts, ratio, "o", color=BLUE, label="measured")
    axes.set_xticks(counts, [str(k) for k in counts])
    axes.set_yticks(predicted, [f"1/{k**2}" for k in counts])
    axes.minorticks_off()
    axes.set(xlabel="number of clients K", ylabel="zero padding / replication")
    axes.set_title("dilution of the components of a single client", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes, rounds=False)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table())
    draw(RESULTS / "noise.png")
    put("noise", table())
