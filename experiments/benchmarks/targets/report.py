"""Write what compilers have said as blocks of the documentation.

Run it with ``python -m experiments.benchmarks.targets.report``.
"""

import json
import pathlib
import shlex
from typing import Any

from experiments.benchmarks.targets import RESULTS
from experiments.benchmarks.targets.points import CLIENTS_PER_CHIP, POINTS, SIZES, Point
from experiments.benchmarks.targets.scaling import RECORDS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put
from fedjax_lora.core.chips import CHIPS, parse_target

COLUMNS = (
    "round",
    "chips; clients at once on each",
    "memory of a chip, GB (estimate)",
    "round, estimated ms",
    "% of the peak",
    "exchanged on a chip",
    "compiled in, processor s",
)


def block() -> str:
    """The command, what it printed, and the versions of the compiler."""
    found = json.loads((RESULTS / "explained.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = ["```text", f"$ fedjax-lora run {shlex.join(found['options'])}", *found["lines"], "```"]
    return "\n".join([*lines, "", f"(With {versions}.)", ""])


def table(file: pathlib.Path = RESULTS / RECORDS) -> str:
    """Tabulate the points that were compiled, and say how many were not."""
    found = json_lines.by_name(file)
    ordered = sorted(POINTS, key=_place)
    told = [(p, found[p.name]) for p in ordered if "error" not in found.get(p.name, {"error": ""})]
    late = [name for name, record in found.items() if "error" in record]
    words = f"Of {len(POINTS)} rounds {len(told)} were compiled so far"
    words += f"; not in their time, or not at all: {', '.join(late)}." if late else "."
    return "\n".join([as_table(COLUMNS, [_row(p.name, p.target, r) for p, r in told]), words, ""])


def _place(point: Point) -> tuple[int, str, int]:
    """Return the place of a point in the table: by backbone, method and chips."""
    return [*SIZES].index(point.backbone), point.method, parse_target(point.target).count


def _row(name: str, target: str, record: dict[str, Any]) -> list[str]:
    """Format a point; a round that does not fit has the memory that it needs."""
    estimate = f"({record['estimated_bytes'] / 1e9:.2f})"
    first = [name, f"{record['chips']}; {record['clients_at_once']} of {CLIENTS_PER_CHIP}"]
    seconds = f"{record['processor_seconds']:.0f}"
    if "needed" in record:
        room = record["available"] / 1e9
        needed = f"does not fit: {record['needed'] / 1e9:.2f} of {room:.2f} {estimate}"
        return [*first, needed, "-", "-", "-", seconds]
    round_seconds, chip = record["round_seconds"], CHIPS[target.partition(":")[0]]
    share = round_seconds and f"{100 * record['flops'] / chip.flops / round_seconds:.1f}"
    told = [
        f"{count} x {kind}, {size / 1e6:.2f} MB"
        for kind, (count, size) in record["collectives"].items()
    ]
    return [
        *first,
        f"{record['total_bytes'] / 1e9:.2f} {estimate}",
        f"{1e3 * round_seconds:.1f}" if round_seconds else "-",
        share or "-",
        "; ".join(told) or "nothing",
        seconds,
    ]


if __name__ == "__main__":
    put("targets", block())
    put("target_scaling", table())
