"""The table of the server's step: ``python -m experiments.server_aggregation.report``."""

import json
import pathlib
import statistics
from typing import Any

from experiments.markdown import put
from experiments.server_aggregation import RESULTS

LABELS = {"ours": "fedjax_lora", "numpy": "NumPy, dense SVD", "torch": "PyTorch, dense SVD"}


def seconds(record: dict[str, Any], contender: str, method: str) -> float:
    """The median turn, for all layers."""
    made = record["contenders"][contender]
    return statistics.median(made["seconds"][method]) * record["problem"]["layers"] / made["layers"]


def rows(record: dict[str, Any]) -> list[list[str]]:
    """One for each contender and method."""
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


def table(results: pathlib.Path = RESULTS) -> str:
    """Everything measured, as a Markdown table."""
    lines = [
        "| adapters | method | by | seconds | times ours | error | layers computed |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        lines += ["| " + " | ".join(cells) + " |" for cells in rows(record)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    put("server_aggregation", table())
