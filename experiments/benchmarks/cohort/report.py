"""Table and figure of a cohort's round: ``python -m experiments.benchmarks.cohort.report``."""

import json
import pathlib
import statistics
from typing import Any

from experiments.benchmarks.cohort import RECORDS, RESULTS
from experiments.benchmarks.cohort.work import CASES
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora.runs.figure_style import BLUE, GREEN, GREY, panels, style_axes

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
    """The measurements in the order of the cases."""
    found = json_lines.by_name(results / RECORDS)
    return [found[case.name] for case in CASES if case.name in found]


def ratios(record: dict[str, Any], one: str, other: str) -> list[float]:
    """Time of `one` relative to `other`, by turn."""
    pairs = zip(record[one]["seconds"], record[other]["seconds"], strict=True)
    return [a / b for a, b in pairs]


def ratio(record: dict[str, Any], one: str, other: str) -> float:
    """Median over turns of the time of `one` relative to `other`."""
    return statistics.median(ratios(record, one, other))


def label(record: dict[str, Any]) -> str:
    """Describe a case."""
    case = record["case"]
    return f"{case['model']}, {case['clients']} x {case['batch']} x {case['tokens']}"


def row(record: dict[str, Any]) -> list[str]:
    """Format one row of the table."""
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
    """Tabulate all measurements."""
    return as_table(COLUMNS, map(row, records(results)))


def profile_table(results: pathlib.Path = RESULTS) -> str:
    """Tabulate the shares of time in the traced rounds, the largest first."""
    found = json.loads((results / "profile.json").read_text(encoding="utf-8"))["cases"]
    of = {kind: [r["shares"].get(kind, 0.0) for r in found] for r in found for kind in r["shares"]}
    kinds = sorted(of, key=lambda kind: sum(of[kind]), reverse=True)
    lines = [[kind, *(f"{100 * share:.1f} %" for share in of[kind])] for kind in kinds]
    return as_table(["share of the time", *map(label, found)], lines)


MODELS = {"minilm": "MiniLM", "roberta-base": "RoBERTa-base"}


def draw(results: pathlib.Path, file: pathlib.Path) -> None:
    """Draw the speed relative to the PEFT loop and to bare matrix products, case by case."""
    found = records(results)
    figure, (left, right) = panels(2, width=5.5, height=1 + 0.32 * len(found))
    at = range(len(found))[::-1]
    for axes, other, colour, scale in ((left, "peft", BLUE, 1), (right, "products", GREEN, 100)):
        for y, record in zip(at, found, strict=True):
            turns = [scale * x for x in ratios(record, other, "ours")]
            axes.plot([min(turns), max(turns)], [y, y], color=colour, lw=2, alpha=0.4)
            axes.plot(statistics.median(turns), y, "o", color=colour)
        axes.set_yticks(at, [_long_label(r) for r in found] if axes is left else [""] * len(found))
        style_axes(axes, rounds=False)
    left.axvline(1, color=GREY, lw=1)
    left.set_xlabel("speed relative to the PEFT loop (1: equally fast)")
    right.axvline(100, color=GREY, lw=1)
    right.set_xlabel("speed relative to bare matrix products, %")
    left.set_xlim(left=0.9)
    right.set_xlim(right=102)
    figure.suptitle("points: medians over the turns; lines: smallest to largest", fontsize=9)
    figure.savefig(file)


def _long_label(record: dict[str, Any]) -> str:
    case = record["case"]
    clients = f"{case['clients']} client{'s' * (case['clients'] > 1)}"
    return f"{MODELS[case['model']]}, {clients}, batch {case['batch']}, {case['tokens']} tokens"


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    draw(RESULTS, RESULTS / "cohort.png")
    put("cohort", table())
    put("cohort_profile", profile_table())
