"""Table and figure of the measurements, from the result files alone."""

import functools
import json
import pathlib
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.noise import METHODS, RESULTS, RUNS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora import methods
from fedjax_lora.runs.plots import COLOURS, style

NOISE = ("zero_padding", "replication", "fed_plora", "hlora", "flora", "fedex_lora", "fslora")
COLLAPSE = ("zero_padding", "replication", "hlora", "raflora", "fed_plora")
LOWEST = 4  # rank in the federation


@functools.cache
def records() -> dict[str, dict[str, Any]]:
    """The finished runs by method."""
    return {run["config"]["federation"]["method"]: run for run in json_lines.read(RUNS)}


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
        name = f"`{method}`" + ("" if methods.takes_mixed_ranks(method) else " (rank 32)")
        cells = [name, *(_ratio(mean[f"{kind}_ratio"]) for kind in ("init", "agg"))]
        cells += [f"{mean[f'{way}_bytes'] / 1e6:.1f}" for way in ("up", "down")]
        cells += [f"{1000 * seconds(method):.0f}", f"{mean['client_bytes_mean'] / 1e6:.1f}"]
        lines.append(cells)
    return as_table(columns, lines)


SHOWN = ("init_ratio", "agg_ratio", "up_bytes", "down_bytes", "client_bytes_mean")


def _ratio(value: float) -> str:
    return "0" if value == 0 else f"{value:.3f}" if value >= 5e-4 else f"{value:.0e}"


def draw(path: pathlib.Path) -> None:
    """Both noises and the energy beyond the lowest rank over the rounds; the dilution law."""
    figure = Figure(figsize=(9, 6.5), dpi=150, layout="constrained")
    (init, aggregation), (energy, dilution) = figure.subplots(2, 2)
    _lines(init, NOISE, lambda h: h["init_ratio"])
    init.set(title="initialization noise / ideal update")
    _lines(aggregation, NOISE, lambda h: h["agg_ratio"])
    aggregation.set(title="aggregation noise / ideal update")
    for axes in (init, aggregation):
        axes.set_yscale("symlog", linthresh=1e-3)
    _lines(energy, COLLAPSE, lambda h: h["energy"][LOWEST - 1])
    energy.set(title=f"energy of the global adapter beyond rank {LOWEST}")
    _dilution(dilution)
    for axes in (init, aggregation, energy):
        axes.set(xlabel="round")
    for axes in (init, energy):  # the upper two show the same methods
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(path)


def _lines(axes: Axes, chosen: tuple[str, ...], value: Any) -> None:
    for n, method in enumerate(chosen):
        points = [(h["round"], value(h)) for h in history(method)]
        line = ("-", "--")[n // 4]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, line, marker="o", ms=3, color=COLOURS[n % len(COLOURS)], label=method)
    style(axes)


def _dilution(axes: Axes) -> None:
    sizes = json.loads((RESULTS / "dilution.json").read_text())
    counts = [int(k) for k in sizes]
    ratio = [x["zero_padding"] / x["replication"] for x in sizes.values()]
    axes.loglog(counts, [k**-2 for k in counts], color="#666666", lw=1, label="$1/K^2$")
    axes.loglog(counts, ratio, "o", color=COLOURS[1], label="measured")
    axes.set(
        title="what one of K clients owns:\nzero padding / replication",
        xlabel="clients K",
        xticks=counts,
        xticklabels=[str(k) for k in counts],
    )
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=7)
    style(axes, rounds=False)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table())
    draw(RESULTS / "noise.png")
    put("noise", table())
