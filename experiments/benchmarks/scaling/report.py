"""Table and figure of growing rounds: ``python -m experiments.benchmarks.scaling.report``."""

import pathlib
import statistics
from typing import Any

from matplotlib.figure import Figure

from experiments.benchmarks.scaling import RECORDS, RESULTS
from experiments.benchmarks.scaling.points import POINTS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora.runs.plots import BLUE, ORANGE, style

COLUMNS = (
    "in a round",
    "time of a round",
    "time per client",
    "peak memory, MB",
    "of these before the first round",
    "compilations",
    "loss, last round",
)
TITLES = {
    "clients": "clients per round, all of rank 4",
    "ranks": "ranks of 100 clients",
    "devices": "devices forced on two cores",
}


def records(results: pathlib.Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """What was measured, by series, in the order of the points."""
    found = json_lines.by_name(results / RECORDS)
    series: dict[str, list[dict[str, Any]]] = {}
    for point in POINTS:
        if point.name in found:
            series.setdefault(point.series, []).append(found[point.name])
    return series


def seconds(record: dict[str, Any]) -> float:
    """The median round after the first."""
    return statistics.median(record["seconds"][1:])


def row(record: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """One line of the table; times are relative to the first of the series.

    Forced devices share the cores, so there the time says nothing.
    """
    times = seconds(record) / seconds(first)
    each = times * first["point"]["clients"] / record["point"]["clients"]
    told = [f"{times:,.2f}" if times < 10 else f"{times:,.0f}", f"{each:.2f}"]
    label, series = record["point"]["label"], record["point"]["series"]
    return [
        f"100 clients, rank {label}" if series == "ranks" else label,
        *(("-", "-") if series == "devices" else told),
        f"{record['peak_megabytes']:,.0f}",
        f"{record['before_megabytes']:,.0f}",
        str(record["compilations"]),
        f"{record['train_loss'][-1]:.6f}",
    ]


def table(results: pathlib.Path = RESULTS) -> str:
    """Everything measured, as a Markdown table."""
    found = records(results).values()
    return as_table(COLUMNS, [row(record, made[0]) for made in found for record in made])


def draw(results: pathlib.Path, file: pathlib.Path) -> None:
    """Time (of devices: the loss) above, memory below, one column for each series."""
    found = records(results)
    figure = Figure(figsize=(11, 5.5), dpi=120, layout="constrained")
    grid = figure.subplots(2, len(found), squeeze=False)
    for (series, made), (above, below) in zip(found.items(), grid.T, strict=True):
        first, base = made[0]["point"]["label"], seconds(made[0])
        values, words = (
            [seconds(r) / base for r in made],
            f"time of a round,\ntimes that of {first}",
        )
        if series == "devices":
            values, words = [r["train_loss"][-1] for r in made], "training loss of the last round"
        peaks = [record["peak_megabytes"] / 1e3 for record in made]
        counted = series == "clients"
        places = [r["point"]["clients"] if counted else at for at, r in enumerate(made)]
        above.plot(places, values, "o-", color=BLUE)
        below.plot(places, peaks, "o-", color=ORANGE)
        for axes in (above, below):
            style(axes, rounds=False)
            axes.set_ylim(0, 1.15 * max(values if axes is above else peaks))
            if counted:
                axes.set_xscale("log")
            else:
                names = [r["point"]["label"].removesuffix("s").split(" device")[0] for r in made]
                axes.set_xticks(places, names)
                axes.set_xlim(-0.4, len(made) - 0.6)
        if counted:
            above.set_yscale("log")
            above.set_ylim(bottom=0.7, top=2 * max(values))
        above.set_ylabel(words)
        below.set_ylabel("peak memory of the process, GB")
        below.set_xlabel(TITLES[series])
    figure.savefig(file)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    draw(RESULTS, RESULTS / "scaling.png")
    put("scaling", table())
