"""Table and figure of a cohort's round: ``python -m experiments.benchmarks.cohort.report``."""

import json
import pathlib
import statistics
from typing import Any

import matplotlib.pyplot as plt

from experiments.benchmarks.cohort import RECORDS, RESULTS
from experiments.benchmarks.cohort.work import CASES
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put

COLUMNS = (
    "model, clients x batch x tokens",
    "real tokens/s",
    "times PEFT",
    "times `loop`",
    "of bare products",
    "first round, s",
    "peak MB",
    "PEFT's peak MB",
)


def records(results: pathlib.Path = RESULTS) -> list[dict[str, Any]]:
    """What was measured, in the order of the cases."""
    found = json_lines.by_name(results / RECORDS)
    return [found[case.name] for case in CASES if case.name in found]


def ratio(record: dict[str, Any], one: str, other: str) -> float:
    """The median over turns of how much longer `one` takes than `other`."""
    pairs = zip(record[one]["seconds"], record[other]["seconds"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def label(record: dict[str, Any]) -> str:
    """A case in words."""
    case = record["case"]
    return f"{case['model']}, {case['clients']} x {case['batch']} x {case['tokens']}"


def row(record: dict[str, Any]) -> list[str]:
    """One line of the table."""
    speed = record["tokens"] / statistics.median(record["ours"]["seconds"])
    return [
        label(record),
        f"{speed:,.0f}",
        f"{ratio(record, 'peft', 'ours'):.2f}",
        f"{ratio(record, 'loop', 'ours'):.2f}",
        f"{100 * ratio(record, 'products', 'ours'):.0f} %",
        f"{record['ours']['first_seconds']:.0f}",
        f"{record['ours']['peak_megabytes']:,.0f}",
        f"{record['peft']['peak_megabytes']:,.0f}",
    ]


def table(results: pathlib.Path = RESULTS) -> str:
    """Everything measured, as a Markdown table."""
    return as_table(COLUMNS, map(row, records(results)))


def profile_table(results: pathlib.Path = RESULTS) -> str:
    """What our round was doing in each traced case, as a Markdown table, the most first."""
    found = json.loads((results / "profile.json").read_text(encoding="utf-8"))["cases"]
    of = {kind: [r["shares"].get(kind, 0.0) for r in found] for r in found for kind in r["shares"]}
    kinds = sorted(of, key=lambda kind: sum(of[kind]), reverse=True)
    lines = [[kind, *(f"{100 * share:.1f} %" for share in of[kind])] for kind in kinds]
    return as_table(["share of the time", *map(label, found)], lines)


def draw(results: pathlib.Path, file: pathlib.Path) -> None:
    """Speed against the PEFT loop, and how near the bare products are, case by case."""
    found = records(results)
    figure, axes = plt.subplots(1, 2, figsize=(10, 1 + 0.4 * len(found)), sharey=True)
    names = [label(record) for record in found]
    axes[0].barh(names, [ratio(r, "peft", "ours") for r in found], color="tab:blue")
    axes[0].axvline(1.0, color="black", linewidth=0.8)
    axes[0].set_xlabel("speed, times that of the PEFT loop")
    axes[1].barh(names, [ratio(r, "products", "ours") for r in found], color="tab:green")
    axes[1].set_xlabel("speed, share of that of bare matrix products")
    axes[1].set_xlim(0, 1)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    draw(RESULTS, RESULTS / "cohort.png")
    put("cohort", table())
    put("cohort_profile", profile_table())
