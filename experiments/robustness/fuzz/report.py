"""The table of generated cases: ``python -m experiments.robustness.fuzz.report``."""

import collections
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.robustness.fuzz import RESULTS
from experiments.robustness.fuzz.case import UNWRITTEN, VERDICTS
from experiments.tools.markdown import as_table, put

SUMMARY = RESULTS / "summary.json"


def summarize(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Number of cases by part and verdict."""
    counts: dict[str, dict[str, int]] = {}
    for record in records:
        if record["verdict"] != UNWRITTEN:
            part = counts.setdefault(record["part"], dict.fromkeys(VERDICTS, 0))
            part[record["verdict"]] += 1
    return counts


def reasons(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How often each reason is given where only we refuse; quoted values are left out."""
    reasons = (record["ours"] for record in records if record["verdict"] == "refused by us")
    return dict(collections.Counter(map(_kind, reasons)).most_common())


def _kind(sentence: str) -> str:
    """A sentence without what differs from case to case."""
    sentence = re.sub(r"^\S*/(\S+)", r"\1", sentence)
    sentence = re.sub(r"adapters-\d+\S*|checkpoints-\d+\S*", "FOLDER", sentence)
    return re.sub(r"'[^']*'|\(\d+(, \d+)*,?\)|\b\d+( x \d+)?\b", "...", sentence)[:160]


def write_summary(records: Iterable[Mapping[str, Any]]) -> None:
    """Write ``summary.json``."""
    records = list(records)
    summary = {"counts": summarize(records), "reasons where only we refuse": reasons(records)}
    SUMMARY.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def read_summary() -> dict[str, Any]:
    """Read ``summary.json`` of the last full run."""
    return json.loads(SUMMARY.read_text(encoding="utf-8"))


def table() -> str:
    """Counts of the last full run, by part."""
    return counts_table(read_summary()["counts"])


def counts_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Counts by part as Markdown."""
    lines = [
        [part, str(sum(found.values())), *(str(found[verdict]) for verdict in VERDICTS)]
        for part, found in counts.items()
    ]
    return as_table(["generated", "compared", *VERDICTS], lines)


if __name__ == "__main__":
    put("fuzz", table())
