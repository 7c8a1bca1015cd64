"""Numbers and processor hours of the small runs: ``python -m experiments.tools.plan``."""

import math
import statistics

from experiments.tools.markdown import as_table
from experiments.tools.registry import STUDIES
from experiments.tools.study import Size, Study, distinct
from fedjax_lora.runs.config import RunConfig

COLUMNS = ("study", "runs", "finished", "CPU minutes per run", "CPU hours", "CPU hours left")


def table(size: Size = "small") -> str:
    """Tabulate runs and processor hours by study, estimated from its finished runs."""
    every = [_counts(study, size) for study in STUDIES]
    every.append([sum(column) for column in zip(*every, strict=True)])
    names = [*(study.name for study in STUDIES), "all"]
    rows = [[name, *_cells(*counts)] for name, counts in zip(names, every, strict=True)]
    return as_table(COLUMNS, rows)


def _counts(study: Study, size: Size) -> list[float]:
    """Number of runs, of finished runs, hours in all and hours left."""
    records = study.records(size)
    configs = [cell.config for cell in distinct(study.parts(size, records))]
    done = {c: records[c]["summary"]["processor_seconds"] for c in configs if c in records}
    left = sum(_expected(done, config) for config in configs if config not in done) / 3600
    return [len(configs), len(done), sum(done.values()) / 3600 + left, left]


def _expected(done: dict[RunConfig, float], config: RunConfig) -> float:
    """Expected seconds: the median over finished runs, with the same task and depth if possible."""
    similar = [
        seconds
        for other, seconds in done.items()
        if (other.data.task, other.model.layers) == (config.data.task, config.model.layers)
    ]
    return statistics.median(similar or done.values()) if done else float("nan")


def _cells(runs: float, finished: float, hours: float, left: float) -> list[str]:
    times = (60 * hours / runs, hours, left)
    return [f"{runs}", f"{finished}", *("-" if math.isnan(x) else f"{x:.1f}" for x in times)]


if __name__ == "__main__":
    print(table())
