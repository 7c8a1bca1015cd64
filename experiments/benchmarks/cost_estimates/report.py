"""Write the tables of estimated and measured costs.

Run it with ``python -m experiments.benchmarks.cost_estimates.report``.
"""

import json
from typing import Any

from experiments.benchmarks.cost_estimates import CARDS, CLIENTS, RESULTS
from experiments.tools.markdown import as_table, put


def read() -> dict[str, Any]:
    """Read the result file."""
    return json.loads((RESULTS / "explain.json").read_text(encoding="utf-8"))


def table() -> str:
    """The large model by storage format, and the small one against the measured memory."""
    found = read()
    parts = [_large(found["large"]), *([_small(found["small"])] if found["small"] else [])]
    return "\n".join(parts)


def _large(rows: dict[str, Any]) -> str:
    cards = ", ".join(f"{card / 1e9:.0f}" for card in CARDS)
    columns = ["Llama-3.2-1B in", "base, GB", "each client: adapter, optimizer, activations, GB"]
    columns += [f"{CLIENTS} clients at once, GB", "XLA on a CPU, GB", "TFLOP a step and client"]
    columns.append(f"clients on {cards} GB")
    lines = []
    for storage, row in rows.items():
        memory = row["memory"]
        parts = (memory["client"], memory["working"], memory["activations"])
        cells = [
            f"`{storage}`",
            f"{memory['base'] / 1e9:.2f}",
            ", ".join(f"{part / 1e9:.2f}" for part in parts),
            f"{memory['total'] / 1e9:.1f}",
            f"{row['compiled_bytes'] / 1e9:.1f}",
            f"{row['flops'] / 1e12:.1f}",
            ", ".join(str(count) for count in row["clients"].values()),
        ]
        lines.append(cells)
    return as_table(columns, lines)


def _small(rows: dict[str, Any]) -> str:
    says = (
        "A Llama of 40 million random parameters (8 layers of width 512) with two clients and 8\n"
        "texts of 256 tokens: the estimate, and the peak of the resident memory of a process in a\n"
        "round above that of the same process before it loaded the model.\n\n"
    )
    columns = ["small Llama", "estimated, MB", "measured, MB", "ratio"]
    lines = []
    for name, row in rows.items():
        estimated, took = (row[key] / 1e6 for key in ("estimated", "took"))
        lines.append([name, f"{estimated:.0f}", f"{took:.0f}", f"{took / estimated:.2f}"])
    return says + as_table(columns, lines)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    put("cost_estimates", table())
