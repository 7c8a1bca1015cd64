"""The table of the server's step: ``python -m experiments.benchmarks.aggregation.report``."""

import pathlib
import statistics
from typing import Any

from experiments.benchmarks.aggregation import RECORDS, RESULTS
from experiments.benchmarks.aggregation.problem import PROBLEMS, SWEEPS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora.runs.figure_style import (
    METHOD_STYLES,
    method_label,
    panels,
    shared_legend,
    style_axes,
)

LABELS = {"ours": "fedjax_lora", "numpy": "NumPy, dense SVD", "torch": "PyTorch, dense SVD"}


def seconds(record: dict[str, Any], contender: str, method: str) -> float:
    """Median time of a turn, scaled to all layers."""
    made = record["contenders"][contender]
    return statistics.median(made["seconds"][method]) * record["problem"]["layers"] / made["layers"]


def rows(record: dict[str, Any]) -> list[list[str]]:
    """Format one row per contender and method."""
    found = []
    base = seconds(record, "ours", "hlora")
    for contender, made in record["contenders"].items():
        for method in made["methods"]:
            took = seconds(record, contender, method)
            is_hlora = method == "hlora"
            cells = [record["problem"]["name"], method, LABELS[contender], f"{took:.3g}"]
            cells += [f"{took / base:.1f}" if is_hlora else ""]
            cells += [f"{max(made['errors'].values()):.0e}" if is_hlora else ""]
            cells += [f"{made['layers']} of {record['problem']['layers']}"]
            found.append(cells)
    return found


COLUMNS = ("adapters", "method", "by", "seconds", "times ours", "error", "layers computed")


def table(results: pathlib.Path = RESULTS) -> str:
    """Tabulate all measurements of the adapter sets."""
    found = json_lines.by_name(results / RECORDS)
    records = [found[problem.name] for problem in PROBLEMS if problem.name in found]
    return as_table(COLUMNS, [row for record in records for row in rows(record)])


SWEEP = (
    "clients",
    "rank",
    "width",
    "HLoRA: NumPy",
    "PyTorch",
    "averaging: NumPy",
    "PyTorch",
    "error",
)


def sweep(results: pathlib.Path = RESULTS) -> dict[str, dict[int, dict[str, Any]]]:
    """The measurements of the varied problems, by the varied size and its value."""
    found = json_lines.by_name(results / RECORDS)
    return {
        name: {size: found[case.name] for size, case in cases.items() if case.name in found}
        for name, cases in SWEEPS.items()
    }


def sweep_row(record: dict[str, Any]) -> list[str]:
    """Format the times of the other contenders, relative to ours."""
    problem = record["problem"]
    times = [
        seconds(record, other, method) / seconds(record, "ours", method)
        for method in ("hlora", "zero_padding")
        for other in ("numpy", "torch")
    ]
    (size, _), *_ = problem["targets"].values()
    error = max(max(made["errors"].values()) for made in record["contenders"].values())
    sizes = [len(problem["ranks"]), max(problem["ranks"]), size]
    return [*map(str, sizes), *(f"{x:.3g}" for x in times), f"{error:.0e}"]


def sweep_table(results: pathlib.Path = RESULTS) -> str:
    """Tabulate the varied problems."""
    cases = {r["problem"]["name"]: r for each in sweep(results).values() for r in each.values()}
    return as_table(SWEEP, map(sweep_row, cases.values()))


SWEPT = {"clients": "number of clients", "rank": "largest rank", "width": "width of the matrix"}
LOOKS = {"ours": ("-", "o"), "numpy": ("--", "s"), "torch": (":", "^")}
"""Line and marker by contender; the colour is that of the method."""


def draw(results: pathlib.Path, file: pathlib.Path) -> None:
    """Draw milliseconds over clients, rank and width."""
    figure, every_axes = panels(len(SWEEPS))
    for axes, (name, cases) in zip(every_axes, sweep(results).items(), strict=True):
        for method in ("hlora", "zero_padding"):
            for contender, (dashes, marker) in LOOKS.items():
                times = [1e3 * seconds(record, contender, method) for record in cases.values()]
                style = {"color": METHOD_STYLES[method].colour, "ls": dashes, "marker": marker}
                library = LABELS[contender].removesuffix(", dense SVD")
                label = f"{method_label(method)}, {library}"
                axes.plot(list(cases), times, ms=4, label=label, **style)
        axes.set(xscale="log", yscale="log", xlabel=SWEPT[name])
        axes.set_xticks(list(cases), list(map(str, cases)), minor=False)
        axes.set_xticks([], minor=True)
        style_axes(axes, rounds=False)
    limits = [bound for axes in every_axes for bound in axes.get_ylim()]
    for axes in every_axes:
        axes.set_ylim(min(limits), max(limits))
    every_axes[0].set_ylabel("time for one matrix, ms")
    shared_legend(figure, every_axes, columns=2)
    figure.savefig(file)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    (RESULTS / "sweep.md").write_text(sweep_table(), encoding="utf-8")
    draw(RESULTS, RESULTS / "aggregation.png")
    put("aggregation", table())
    put("aggregation_sweep", sweep_table())
