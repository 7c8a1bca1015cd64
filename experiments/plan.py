"""How many small runs are planned, and how long they take: ``python -m experiments.plan``."""

import statistics
from collections.abc import Iterator

from experiments.studies import STUDIES
from experiments.study import Size, Study, distinct

CORES = 2
"""Minutes are processor minutes over so many cores: what a run takes where nothing else runs."""


def table(size: Size = "small") -> str:
    """Runs and hours of every study, from the median time of its finished runs."""
    lines = [
        "| study | runs | finished | minutes a run | hours in all | hours left |",
        "|---|---|---|---|---|---|",
    ]
    totals = [0, 0, 0.0, 0.0]
    for study in STUDIES:
        planned, minutes = _runs(study, size), list(_minutes(study, size))
        median = statistics.median(minutes) if minutes else float("nan")
        left = planned - len(minutes)
        row = [planned, len(minutes), planned * median / 60, left * median / 60]
        totals = [total + x for total, x in zip(totals, row, strict=True)]
        lines.append(_line(study.name, row, f"{median:.1f}" if minutes else "-"))
    return "\n".join([*lines, _line("all", totals, "")]) + "\n"


def _runs(study: Study, size: Size) -> int:
    return len(distinct(study.parts(size, {})))


def _minutes(study: Study, size: Size) -> Iterator[float]:
    records = study.records(size)
    for cell in distinct(study.parts(size, records)):
        if cell.config in records:
            yield records[cell.config]["summary"]["processor_seconds"] / CORES / 60


def _line(name: str, row: list, minutes: str) -> str:
    runs, finished, hours, left = row
    known = lambda x: f"{x:.1f}" if x == x else "-"  # noqa: E731
    return f"| {name} | {runs} | {finished} | {minutes} | {known(hours)} | {known(left)} |"


if __name__ == "__main__":
    print(table())
