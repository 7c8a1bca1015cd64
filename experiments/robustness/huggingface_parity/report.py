"""Write the tables of parity: ``python -m experiments.robustness.huggingface_parity.report``."""

import json
import pathlib

from experiments.tools.markdown import as_table, put

RESULTS = pathlib.Path(__file__).parent / "results"
FAMILIES = RESULTS / "families.json"


def table() -> str:
    """Largest differences of the logits by model."""
    found = json.loads((RESULTS / "parity.json").read_text(encoding="utf-8"))
    columns = ["base", "adapter in `peft`", "merged in `transformers`", "effect of the adapter"]
    lines = [
        [row["model"], f"{row['adapter']:.0e}", f"{row['merged']:.0e}", f"{row['effect']:.2f}"]
        for row in found["rows"]
    ]
    return as_table(columns, lines)


def families_table() -> str:
    """Largest differences of every model family."""
    found = json.loads(FAMILIES.read_text(encoding="utf-8"))["rows"]
    columns = [
        "family", "logits", "LoRA gradients", "adapter in `peft`", "adapter back",
        "merged in `transformers`", "effect of the adapter", "card runs",
    ]  # fmt: skip
    lines = [
        [
            f"`{x['family']}`",
            *(f"{x[name]:.0e}" for name in ("logits", "gradients", "adapter")),
            "same bits" if x["back"] else "differs",
            f"{x['merged']:.0e}",
            f"{x['effect']:.1f}",
            "yes" if x["cards"] else "no",
        ]
        for x in found
    ]
    return as_table(columns, lines)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    put("huggingface_parity", table())
    put("families", families_table())
