"""Write the parity table: ``python -m experiments.robustness.huggingface_parity.report``."""

import json
import pathlib

from experiments.tools.markdown import as_table, put

RESULTS = pathlib.Path(__file__).parent / "results"


def table() -> str:
    """Largest differences of the logits by model."""
    found = json.loads((RESULTS / "parity.json").read_text(encoding="utf-8"))
    columns = ["base", "adapter in `peft`", "merged in `transformers`", "effect of the adapter"]
    lines = [
        [row["model"], f"{row['adapter']:.0e}", f"{row['merged']:.0e}", f"{row['effect']:.2f}"]
        for row in found["rows"]
    ]
    return as_table(columns, lines)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    put("huggingface_parity", table())
