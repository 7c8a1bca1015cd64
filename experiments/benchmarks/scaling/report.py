"""Table and figure of growing rounds: ``python -m experiments.benchmarks.scaling.report``."""

import json
import pathlib
import statistics
from typing import Any

from matplotlib.figure import Figure

from experiments.benchmarks.scaling import RESULTS
from experiments.benchmarks.scaling.points import POINTS
from experiments.markdown import put
from fedjax_lora.plots import BLUE, ORANGE, style

COLUMNS = (
    "in a round",
    "time of a round",
    "time per client",
    "peak memory, MB",
    "of these before the first round",
    "compilations",
)
TITLES = {
    "clients": "clients per round, all of rank 4",
    "ranks": "ranks of 100 clients",
    "devices": "devices forced on two cores",
}


def records(results: pathlib.Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """What was measured, by series, in the order of the points."""
    files = [results / f"{point.name}.json" for point in POINTS]
    found: dict[str, list[dict[str, Any]]] = {}
    for file in filter(pathlib.Path.exists, files):
        record = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(record["point"]["series"], []).append(record)
    return found


def seconds(record: dict[str, Any]) -> float:
    """The median round after the first."""
    return statistics.median(record["seconds"][1:])


def row(record: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """One line of the table; times are relative to the first of the series."""
    times = seconds(record) / seconds(first)
    each = times * first["point"]["clients"] / record["point"]["clients"]
    return [
        record["point"]["label"],
        f"{times:,.2f}" if times < 10 else f"{times:,.0f}",
        f"{each:.2f}",
        f"{record['peak_megabytes']:,.0f}",
        f"{record['before_megabytes']:,.0f}",
        str(record["compilations"]),
    ]


def table(results: pathlib.Path = RESULTS) -> str:
    """Everything measured, as a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    lines += [row(record, made[0]) for made in records(results).values() for record in made]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(results: pathlib.Path, file: pathlib.Path) -> None:
    """Time above, memory below, one column for each series."""
    found = records(results)
    figure = Figure(figsize=(11, 5.5), dpi=120, layout="constrained")
    grid = figure.subplots(2, len(found), squeeze=False)
    for (series, made), (above, below) in zip(found.items(), grid.T, strict=True):
        base = seconds(made[0])
        times = [seconds(record) / base for record in made]
        peaks = [record["peak_megabytes"] / 1e3 for record in made]
        names = [record["point"]["label"].removesuffix(" clients") for record in made]
        places: list[Any] = list(range(len(made)))
        if series == "clients":
            places = [record["point"]["clients"] for record in made]
            for axes in (above, below):
                axes.set_xscale("log")
            above.set_yscale("log")
        if series == "devices":
            names = [str(record["point"]["devices"]) for record in made]
        above.plot(places, times, "o-", color=BLUE)
        below.plot(places, peaks, "o-", color=ORANGE)
        for axes in (above, below):
            style(axes, rounds=False)
            if series != "clients":
                axes.set_xticks(places, names)
                axes.set_xlim(-0.4, len(made) - 0.6)
        for axes in (above, below) if series != "clients" else (below,):
            axes.set_ylim(bottom=0)
        above.set_ylabel(f"time of a round,\ntimes that with {made[0]['point']['label']}")
        below.set_ylabel("peak memory of the process, GB")
        below.set_xlabel(TITLES[series])
    figure.savefig(file)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    draw(RESULTS, RESULTS / "scaling.png")
    put("scaling", table())
