"""How many small runs are planned, and how long they take: ``python -m experiments.tools.plan``."""

import statistics

from experiments.tools.markdown import as_table
from experiments.tools.registry import STUDIES
from experiments.tools.study import Size, Study, distinct
from fedjax_lora.runs.config import RunConfig

COLUMNS = ("study", "runs", "finished", "CPU minutes a run", "CPU hours in all", "CPU hours left")


def table(size: Size = "small") -> str:
    """Runs and processor hours of every study, from its finished runs."""
    every = [_counts(study, size) for study in STUDIES]
    every.append([sum(column) for column in zip(*every, strict=True)])
    names = [*(study.name for study in STUDIES), "all"]
    rows = [[name, *_cells(*counts)] for name, counts in zip(names, every, strict=True)]
    return as_table(COLUMNS, rows)


def _counts(study: Study, size: Size) -> list[float]:
    """Runs, finished ones, hours of all, hours of what is left."""
    records = study.records(size)
    configs = [cell.config for cell in distinct(study.parts(size, records))]
    spent = {c: records[c]["summary"]["processor_seconds"] for c in configs if c in records}
    ahead = sum(_expected(spent, config) for config in configs if config not in spent) / 3600
    return [len(configs), len(spent), sum(spent.values()) / 3600 + ahead, ahead]


def _expected(spent: dict[RunConfig, float], config: RunConfig) -> float:
    """The median of the finished runs, of those with the same task and depth if there are any."""
    like = [
        seconds
        for other, seconds in spent.items()
        if (other.data.task, other.model.layers) == (config.data.task, config.model.layers)
    ]
    return statistics.median(like or spent.values()) if spent else float("nan")


def _cells(runs: float, finished: float, hours: float, left: float) -> list[str]:
    known = lambda x: f"{x:.1f}" if x == x else "-"  # noqa: E731
    return [f"{runs}", f"{finished}", known(60 * hours / runs), known(hours), known(left)]


if __name__ == "__main__":
    print(table())
