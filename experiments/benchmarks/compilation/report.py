"""Table and figure of two starts: ``python -m experiments.benchmarks.compilation.report``."""

import pathlib
import statistics
from typing import Any

from matplotlib.figure import Figure

from experiments.benchmarks.compilation import RECORDS, RESULTS, STARTS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora.runs.figure_style import COLOURS, style_axes

COLUMNS = (
    "start",
    "compilations of the round",
    "copies of the step in it",
    "shapes of a step",
    "read from the cache",
    "compiling or reading the round, times warm",
    "time to the end of the first round, times warm",
    "starts",
)
PARTS = ("imports, data and model", "tracing", "compiling or reading the cache", "other")
ROUND = "round_fn"
CACHES = {"cold": "cold start, empty cache", "warm": "warm start, filled cache"}

Records = dict[str, list[dict[str, Any]]]


def records(results: pathlib.Path = RESULTS) -> Records:
    """The measurements by start."""
    found = json_lines.by_name(results / RECORDS)
    return {
        start: [found[name] for name in sorted(found) if name.startswith(f"{start}-")]
        for start in STARTS
    }


def of_round(record: dict[str, Any]) -> dict[str, Any]:
    """The compiler's record of the round, which must have been compiled once."""
    (found,) = (program for program in record["programs"] if ROUND in program["name"])
    return found


def parts(record: dict[str, Any]) -> list[float]:
    """Seconds to the end of the first round, in `PARTS`."""
    loaded, end = record["loaded_seconds"], record["round_end_seconds"][0]
    traced = sum(s for name, s in record["traced_seconds"].items() if ROUND in name)
    compiled = of_round(record)["seconds"]
    return [loaded, traced, compiled, end - loaded - traced - compiled]


def median(records: list[dict[str, Any]]) -> list[float]:
    """The median of each of `PARTS`."""
    return [statistics.median(values) for values in zip(*map(parts, records), strict=True)]


def row(name: str, found: Records) -> list[str]:
    """Format one row of the table."""
    first, made, warm = found[name][0], found[name], found["warm"]
    end = lambda records: statistics.median(r["round_end_seconds"][0] for r in records)  # noqa: E731
    cached = sorted({program["name"] for program in first["programs"] if program["cached"]})
    return [
        name,
        str(first["round_compilations"]),
        str(first["step_copies"]),
        str(len(first["shapes"])),
        ", ".join(f"`{name}`" for name in cached) or "nothing",
        f"{median(made)[2] / median(warm)[2]:.1f}",
        f"{end(made) / end(warm):.2f}",
        str(len(made)),
    ]


def table(results: pathlib.Path = RESULTS) -> str:
    """Tabulate all measurements."""
    found = records(results)
    return as_table(COLUMNS, [row(name, found) for name in found])


def draw(results: pathlib.Path, file: pathlib.Path) -> None:
    """Draw the parts of the time to the end of the first round."""
    found = records(results)
    figure = Figure(figsize=(8, 2.4), dpi=130, layout="constrained")
    axes = figure.subplots()
    warm = sum(median(found["warm"]))
    for at, of_start in enumerate(found.values()):
        left = 0.0
        for part, (label, value) in enumerate(zip(PARTS, median(of_start), strict=True)):
            width = value / warm
            name = label if at == 0 else None
            axes.barh(at, width, left=left, color=COLOURS[part], label=name, ec="white")
            left += width
        axes.annotate(f" {left:.2f}", (left, at), va="center", fontsize=9)
    axes.set_yticks(range(len(found)), [CACHES[name] for name in found])
    axes.invert_yaxis()
    axes.set_xlabel("time to the end of the first round, relative to a warm start")
    style_axes(axes, rounds=False)
    axes.grid(visible=False, axis="y")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(file)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    draw(RESULTS, RESULTS / "compilation.png")
    put("compilation", table())
