"""Write the table of storages: ``python -m experiments.benchmarks.quantized_base.report``."""

import json

from experiments.benchmarks.quantized_base import RESULTS
from experiments.tools.markdown import as_table, put

_GB = 1e9


def table() -> str:
    """All measurements as a Markdown table."""
    columns = ["storage", "base, GB", "beside it in a step, GB", "peak while loading, GB"]
    columns += ["logits' error", "same best token", "perplexity"]
    lines = []
    record = json.loads((RESULTS / "storage.json").read_text(encoding="utf-8"))
    for storage, found in record.items():
        memory, output = found["memory"], found["output"]
        cells = [
            f"`{storage}`",
            f"{memory['base_bytes'] / _GB:.2f}",
            f"{memory['step_bytes'] / _GB:.2f}",
            f"{found['loading']['peak_bytes'] / _GB:.2f}",
            f"{output['error']:.4f}" if output["error"] else "0",
            f"{100 * output['agreement']:.1f} %",
            f"{output['perplexity']:.2f}",
        ]
        lines.append(cells)
    return as_table(columns, lines)


if __name__ == "__main__":
    (RESULTS / "table.md").write_text(table(), encoding="utf-8")
    put("quantized_base", table())
