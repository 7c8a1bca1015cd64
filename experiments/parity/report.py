"""The README's table of parity: ``python -m experiments.parity.report``."""

import json
import pathlib

from experiments.markdown import put

RESULTS = pathlib.Path(__file__).parent / "results"


def table() -> str:
    """Largest differences of the logits by model."""
    found = json.loads((RESULTS / "parity.json").read_text(encoding="utf-8"))
    lines = [
        "| base | adapter in `peft` | merged in `transformers` | effect of the adapter |",
        "|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['model']} | {row['adapter']:.0e} | {row['merged']:.0e} | {row['effect']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    put("parity", table())
