"""Table and figure of two starts: ``python -m experiments.benchmarks.compilation.report``."""

import pathlib
import statistics
from typing import Any

from matplotlib.figure import Figure

from experiments.benchmarks.compilation import RECORDS, RESULTS, STARTS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora.runs.plots import COLOURS, style

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
PARTS = ("start, data and model", "tracing", "compiling, or reading the cache", "all else")
ROUND = "round_fn"

Records = dict[str, list[dict[str, Any]]]


def records(results: pathlib.Path = RESULTS) -> Records:
    """What was measured, by start."""
    found = json_lines.by_name(results / RECORDS)
    return {
        start: [found[name] for name in sorted(found) if name.startswith(f"{start}-")]
        for start in STARTS
    }


def of_round(record: dict[str, Any]) -> dict[str, Any]:
    """What the compiler said of the round; it must have been asked once."""
    (found,) = (program for program in record["programs"] if ROUND in program["name"])
    return found


def parts(record: dict[str, Any]) -> list[float]:
    """Seconds to the end of the first round, in `PARTS`."""
    loaded, end = record["loaded_seconds"], record["round_end_seconds"][0]
    traced = sum(s for name, s in record["traced_seconds"].items() if ROUND in name)
    compiled = of_round(record)["seconds"]
    return [loaded, traced, compiled, end - loaded - traced - compiled]


def median(made: list[dict[str, Any]]) -> list[float]:
    """The median of each of `PARTS`."""
    return [statistics.median(values) for values in zip(*map(parts, made), strict=True)]


def row(name: str, found: Records) -> list[str]:
    """One line of the table."""
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
    """Everything measured, as a Markdown table."""
    found = records(results)
    return as_table(COLUMNS, [row(name, found) for name in found])


def draw(results: pathlib.Path, file: pathlib.Path) -> None:
    """Where the time to the end of the first round goes."""
    found = records(results)
    figure = Figure(figsize=(8, 2.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    whole = sum(median(found["warm"]))
    for at, made in enumerate(found.values()):
        left = 0.0
        for part, (label, value) in enumerate(zip(PARTS, median(made), strict=True)):
            wide = value / whole
            axes.barh(at, wide, left=left, color=COLOURS[part], label=label if at == 0 else None)
            left += wide
    axes.set_yticks(range(len(found)), [f"{name} start" for name in found])
    axes.invert_yaxis()
    axes.set_xlabel("time to the end of the first round, times that of a warm start")
    style(axes, rounds=False)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(file)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    draw(RESULTS, RESULTS / "compilation.png")
    put("compilation", table())
