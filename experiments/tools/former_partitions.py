"""Committed results whose clients were divided by the rounding of an earlier version.

Run ``python -m experiments.tools.write_docs`` to write the table.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.tools import json_lines
from experiments.tools.markdown import as_table
from fedjax_lora.runs.older_versions import former_partition

EXPERIMENTS = pathlib.Path(__file__).parents[1]


def table() -> str:
    """Runs, partition and recorded seconds of each result file that would have to be made again."""
    lines = []
    for path in sorted(EXPERIMENTS.rglob("results/**/*")):
        runs = [
            (spec, summary["seconds"])
            for spec, summary in _runs(path)
            if former_partition(summary, spec)
        ]
        if runs:
            specs = ", ".join(f"`{spec}`" for spec in sorted({spec for spec, _ in runs}))
            seconds = sum(seconds for _, seconds in runs)
            where = f"`{path.relative_to(EXPERIMENTS)}`"
            lines.append((where, str(len(runs)), specs, f"{seconds / 60:,.0f}"))
    return as_table(("result file", "runs", "partition", "recorded minutes"), lines)


def _runs(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield partition and summary of the runs in a result file."""
    if path.suffix == ".jsonl":
        found = [(record.get("config"), record.get("summary")) for record in json_lines.read(path)]
    elif path.name == "summary.json" and (path.parent / "config.json").is_file():
        found = [tuple(json.loads((path.parent / f"{name}.json").read_text("utf-8"))
                       for name in ("config", "summary"))]  # fmt: skip
    else:
        return
    for config, summary in found:
        if isinstance(config, dict) and "federation" in config and summary:
            yield config["federation"]["partition"], summary
