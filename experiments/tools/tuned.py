"""Comparisons whose arms each have a learning rate of their own, found with the same budget.

A `Comparison` becomes two stages of a study: every arm with every rate on validation examples and a
seed that is not reported, then every arm at its best rate with all seeds. Its table has the
differences from one arm with intervals that hold together at 95 %.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.tools.json_lines import Record
from experiments.tools.markdown import as_table
from experiments.tools.run_store import Records
from experiments.tools.statistics import simultaneous
from experiments.tools.study import Changes, Part, Results, Study, results, variant
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.sweep.intervals import Estimate

TUNING_SEED = 100
RATES = (3e-3, 8e-3, 2e-2)


class Comparison(NamedTuple):
    """Arms on tasks, and what they are judged by.

    Attributes:
      name: identifier.
      title: description for readers.
      base: config shared by the arms, by task.
      tasks: names of tasks.
      arms: config changes by arm, without the learning rate; the first one is the reference.
      seeds: of every arm.
      metric: name of the score in a run's history.
      tuning: config changes of the runs that find the rates.
      rates: that are tried.
      higher: whether a higher score is better.
      unit: what differences are multiplied by in the table: 100 for percentage points.
    """

    name: str
    title: str
    base: Callable[[str], RunConfig]
    tasks: tuple[str, ...]
    arms: Mapping[str, Changes]
    seeds: tuple[int, ...]
    metric: str = "accuracy"
    tuning: Mapping[str, object] = {}
    rates: tuple[float, ...] = RATES
    higher: bool = True
    unit: float = 100.0


def tried(arm: str, rate: float) -> str:
    """Name of the arm that tries a rate."""
    return f"{arm}, rate {rate:g}"


def tuning_part(of: Comparison) -> Part:
    """Every arm with every rate."""
    arms = {
        tried(arm, rate): {**changes, "local.learning_rate": rate}
        for arm, changes in of.arms.items()
        for rate in of.rates
    }
    base = variant(of.base, {**of.tuning, "execution.eval_every": 100})
    return Part(f"{of.name}_rates", of.title, base, of.tasks, arms, (TUNING_SEED,), shown=False)


def best_rate(of: Comparison, records: Records, arm: str, task: str) -> float:
    """Select the rate with the best validation score; the smaller one in a tie or without runs."""
    part = tuning_part(of)

    def loss(rate: float) -> float:
        found = records.get(part.config(tried(arm, rate), task, TUNING_SEED))
        if not found:
            return math.inf
        score = found["history"][-1][f"validation_{of.metric}"]
        return -score if of.higher else score

    return min(of.rates, key=lambda rate: (loss(rate), rate))


def reported_parts(of: Comparison, records: Records) -> list[Part]:
    """Every arm at its rate with all seeds, a part for each task."""
    return [
        Part(
            f"{of.name}_{n}",
            f"{of.title}, {task}",
            of.base,
            (task,),
            {
                arm: {**changes, "local.learning_rate": best_rate(of, records, arm, task)}
                for arm, changes in of.arms.items()
            },
            of.seeds,
        )
        for n, task in enumerate(of.tasks)
    ]


def study_of(name: str, comparisons: Sequence[Comparison], *, group: str) -> Study:
    """A study of comparisons: the rates of all, then the runs of all."""
    return Study(
        name,
        (
            lambda size, records: [tuning_part(of) for of in comparisons],
            lambda size, records: [p for of in comparisons for p in reported_parts(of, records)],
        ),
        group=group,
    )


def table(study: Study, of: Comparison) -> str:
    """Tabulate a comparison's finished tasks: scores, and differences from the first arm."""
    found = results(study, "small")
    scores: dict[tuple[str, str], list[float]] = {}
    for n, task in enumerate(of.tasks):
        for arm in of.arms:
            if (runs := _finished(found, f"{of.name}_{n}", arm, task)) is not None:
                scores[task, arm] = [float(run["history"][-1][of.metric]) for run in runs]
    first = next(iter(of.arms))
    apart = {
        key: (np.array(values) - scores[key[0], first]).tolist()
        for key, values in scores.items()
        if key[1] != first and (key[0], first) in scores
    }
    intervals = simultaneous(apart, planned=len(of.tasks) * (len(of.arms) - 1))
    lines = [
        [
            task,
            arm,
            f"{of.unit * np.mean(x):.2f} ± {of.unit * np.std(x, ddof=1):.2f}",
            _against(intervals.get((task, arm)), of.unit),
        ]
        for (task, arm), x in scores.items()
    ]
    if not lines:
        return "Not yet run.\n"
    better = "higher" if of.higher else "lower"
    heads = ["task", "arm", f"{of.metric} ({better} is better)", f"against {first}"]
    return as_table(heads, lines)


def _against(difference: Estimate | None, unit: float) -> str:
    if difference is None:
        return "-"
    mean, low, high = (unit * x for x in (difference.mean, difference.low, difference.high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _finished(found: Results, part: str, arm: str, task: str) -> list[Record] | None:
    runs, seeds = found.runs(part, arm, task), found.parts[part].seeds
    return [runs[seed] for seed in seeds] if len(runs) == len(seeds) else None


def write(study: Study, comparisons: Sequence[Comparison]) -> None:
    """Write the tables of all comparisons beside the study's results."""
    pages = [f"## {of.title}\n\n{table(study, of)}" for of in comparisons]
    page = study.home() / "results" / "table.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join(pages), encoding="utf-8")
