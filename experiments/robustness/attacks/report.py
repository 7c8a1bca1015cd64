"""The table of the attacks, from the results alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.robustness.attacks import ATTACKS, DEFENCES, METHODS, RESULTS, SEEDS
from experiments.tools import json_lines
from experiments.tools.markdown import as_table, put


def table() -> str:
    """Return the table of all results."""
    return table_of(json_lines.read(RESULTS))


def table_of(records: Sequence[dict[str, Any]]) -> str:
    """Return accuracy in percent by attack, a row for each method and defence; means over seeds.

    Behind it, over all attacks: attackers' messages found, and false alarms among honest ones.

    Args:
      records: of the runs.
    """
    attacks = [name for name in ATTACKS if any(r["attack"] == name for r in records)]
    rows = []
    for method in METHODS:
        for defence in DEFENCES:
            own = [r for r in records if (r["method"], r["defence"]) == (method, defence)]
            if own:
                cells = [_accuracy([r for r in own if r["attack"] == name]) for name in attacks]
                rows.append((f"`{method}`", defence, *cells, *_alarms(own)))
    header = ("method", "defence", *attacks, "found, %", "false alarms, %")
    seeds = len({r["seed"] for r in records})
    counted = f"Accuracy in percent, {seeds} of {len(SEEDS)} seeds.\n\n"
    return counted + as_table(header, rows)


def _accuracy(runs: Sequence[dict[str, Any]]) -> str:
    return f"{100 * np.mean([r['accuracy'] for r in runs]):.1f}" if runs else "-"


def _alarms(runs: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Attackers found and honest clients left out, in percent."""
    attacks, honest = (sum(r[name] for r in runs) for name in ("attacks", "honest"))
    found, alarms = (sum(r[name] for r in runs) for name in ("found", "false_alarms"))
    return (
        f"{100 * found / attacks:.0f}" if attacks else "-",
        f"{100 * alarms / honest:.0f}" if honest else "-",
    )


if __name__ == "__main__":
    put("attacks", table())
