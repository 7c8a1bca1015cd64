"""Tables of what was measured: ``python -m experiments.benchmarks.accelerators.report``."""

import argparse
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from experiments.benchmarks.accelerators import PARTS, RECORDS, RESULTS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table

Record = Mapping[str, Any]

COLUMNS = ("case", "seconds", "first call, s", "what was found")


def table(file: pathlib.Path) -> str:
    """Tabulate all results of a file, with what was not measured and why."""
    found = json_lines.by_name(file)
    measured = {name: r for name, r in found.items() if "error" not in r}
    rates = [r["flops"] for name, r in measured.items() if name.startswith("peak/bfloat16")]
    rate = rates[0] if rates else None
    rows = [
        _row(name, record, measured, rate)
        for part in PARTS
        for name, record in found.items()
        if name.startswith(f"{part}/")
    ]
    where = sorted({f"{r['device']}, jax {r['jax']}" for r in measured.values()})
    return "\n".join(
        [f"({'; '.join(where) or 'nothing was measured'}.)", "", as_table(COLUMNS, rows)]
    )


def _row(
    name: str, record: Record, measured: Mapping[str, Record], rate: float | None
) -> tuple[str, ...]:
    if "error" in record:
        return name, "-", "-", record["error"]
    part = name.partition("/")[0]
    say: Callable[..., str] = SAID.get(part, _error)
    return name, _number(record, "seconds"), _number(record, "first_seconds"), say(
        record, measured, rate
    )  # fmt: skip


def _number(record: Record, field: str) -> str:
    return f"{record[field]:.4g}" if field in record else "-"


def _peak(record: Record, *_: Any) -> str:
    return f"{record['flops'] / 1e12:.4g} TFLOP/s"


def _round(record: Record, measured: Mapping[str, Record], rate: float | None) -> str:
    words = [
        f"{record['tokens_per_second']:,.0f} tokens/s",
        f"{record['clients_at_once']} of {record['clients']} clients at once",
    ]
    if rate:
        words.append(f"{100 * record['flops'] / rate:.1f} % of the products' rate")
    if record["peak_bytes"]:
        share = record["peak_bytes"] / record["estimated_bytes"]
        words.append(f"memory {share:.2f} times the estimate")
    return ", ".join(words)


def _peft(record: Record, measured: Mapping[str, Record], rate: float | None) -> str:
    words = [f"{record['tokens_per_second']:,.0f} tokens/s on {record['device']}"]
    if ours := measured.get("encoder/default"):
        ratio = ours["tokens_per_second"] / record["tokens_per_second"]
        words.append(f"ours is {ratio:.1f} times as fast")
    return ", ".join(words)


def _sharded(record: Record, *_: Any) -> str:
    return (
        f"{record['devices']} devices; states apart by {record['difference']:.1e}, their largest "
        f"entry is {record['largest']:.1e}"
    )


def _server(record: Record, *_: Any) -> str:
    return f"misses {record['missed']:.6f} of the product"


def _error(record: Record, *_: Any) -> str:
    return f"apart from float32 by {record['apart']:.1e}" if "apart" in record else ""


SAID: Mapping[str, Callable[..., str]] = {
    "peak": _peak,
    "encoder": _round,
    "decoder": _round,
    "peft": _peft,
    "sharded": _sharded,
    "server": _server,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=pathlib.Path, nargs="?", default=RESULTS / RECORDS)
    print(table(parser.parse_args().file))
