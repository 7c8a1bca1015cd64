"""Table and figure of growing rounds: ``python -m experiments.benchmarks.scaling.report``."""

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from experiments.benchmarks.scaling import RECORDS, RESULTS, federation
from experiments.benchmarks.scaling.points import POINTS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora.runs.figure_style import BLUE, ORANGE, panels, style_axes

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
    "clients": "clients in a round, all of rank 4",
    "ranks": "ranks of 100 clients",
    "devices": "devices emulated on two cores",
}


def records(results: pathlib.Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """The measurements by series, in the order of the points."""
    found = json_lines.by_name(results / RECORDS)
    series: dict[str, list[dict[str, Any]]] = {}
    for point in POINTS:
        if point.name in found:
            series.setdefault(point.series, []).append(found[point.name])
    return series


def seconds(record: dict[str, Any]) -> float:
    """Median time of the rounds after the first."""
    return statistics.median(record["seconds"][1:])


def row(record: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """Format one row of the table; times are relative to the first point of the series.

    Emulated devices share the cores, so their times say nothing about devices.
    """
    times = seconds(record) / seconds(first)
    each = times * first["point"]["clients"] / record["point"]["clients"]
    time_cells = [f"{times:,.2f}" if times < 10 else f"{times:,.0f}", f"{each:.2f}"]
    label, series = record["point"]["label"], record["point"]["series"]
    return [
        f"100 clients, rank {label}" if series == "ranks" else label,
        *(("-", "-") if series == "devices" else time_cells),
        f"{record['peak_megabytes']:,.0f}",
        f"{record['before_megabytes']:,.0f}",
        str(record["compilations"]),
        f"{record['train_loss'][-1]:.6f}",
    ]


def table(results: pathlib.Path = RESULTS) -> str:
    """Tabulate all measurements."""
    found = records(results).values()
    return as_table(COLUMNS, [row(record, made[0]) for made in found for record in made])


def federation_table(results: pathlib.Path = RESULTS) -> str:
    """Tabulate the runs of large federations."""
    found = json_lines.by_name(results / federation.RECORDS).values()
    cells = [
        [
            f"{record['cohort']:,} of {record['clients']:,}",
            f"{record['peak_megabytes']:,.0f}",
            f"{record['processor_seconds']:,.0f}",
        ]
        for record in sorted(found, key=lambda record: record["clients"])
    ]
    return as_table(("clients in a round", "peak memory, MB", "processor seconds"), cells)


def draw(results: pathlib.Path, file: pathlib.Path) -> None:
    """Draw time (for devices: the difference of the loss) above and memory below, by series."""
    found = records(results)
    figure, every_axes = panels(2 * len(found), columns=len(found), width=4.0, height=2.9)
    for number, (series, points) in enumerate(found.items()):
        above, below = every_axes[number], every_axes[number + len(found)]
        places = range(len(points))
        if series == "devices":
            _losses(above, points)
        else:
            _times(above, points)
        _memory(below, points)
        for axes in (above, below):
            axes.set_xticks(places, [_short_label(record) for record in points])
            axes.set_xlim(-0.5, len(points) - 0.5)
            style_axes(axes, rounds=False)
            axes.grid(visible=False, axis="x")
        below.set_xlabel(TITLES[series])
    every_axes[len(found)].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(file)


def _times(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    first = points[0]
    base = seconds(first) / first["point"]["clients"]
    values = [seconds(r) / r["point"]["clients"] / base for r in points]
    axes.bar(range(len(points)), values, 0.6, color=BLUE)
    for at, value in enumerate(values):
        axes.annotate(f"{value:.2f}", (at, value), ha="center", va="bottom", fontsize=8)
    axes.set_ylim(0, 1.2 * max(values))
    axes.set_ylabel(f"time per client and round,\nrelative to {first['point']['label']}")


def _losses(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    base = points[0]["train_loss"][-1]
    apart = [abs(record["train_loss"][-1] - base) / base for record in points]
    axes.plot(range(len(points)), apart, "o", color=BLUE)
    axes.set_ylim(-1e-7, max(1e-6, 1.2 * max(apart)))
    axes.ticklabel_format(axis="y", scilimits=(0, 0))
    axes.set_ylabel("training loss of the last round,\nrelative difference from 1 device")


def _memory(axes: Axes, points: Sequence[dict[str, Any]]) -> None:
    before = [record["before_megabytes"] / 1e3 for record in points]
    rounds = [record["peak_megabytes"] / 1e3 - b for record, b in zip(points, before, strict=True)]
    axes.bar(range(len(points)), before, 0.6, color="#BBBBBB", label="before the first round")
    axes.bar(range(len(points)), rounds, 0.6, bottom=before, color=ORANGE, label="in the rounds")
    axes.set_ylabel("peak memory of the process, GB")
    axes.set_ylim(0, 1.15 * max(b + r for b, r in zip(before, rounds, strict=True)))


def _short_label(record: dict[str, Any]) -> str:
    label = record["point"]["label"].split(" client")[0].split(" device")[0]
    return label.replace(" with ", ",\n")


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    draw(RESULTS, RESULTS / "scaling.png")
    put("scaling", table())
    put("scaling_federation", federation_table())
