"""What a paper claims against what came out, by one rule, from the result files alone."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.study import Results
from fedjax_lora.compare.queue import Record
from fedjax_lora.compare.table import Estimate, estimate

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
UNTESTABLE, NOT_RUN = "not testable here", "not yet run"

FLOOR = 0.02
"""Below this much above the majority class nothing has been learned that could be compared."""

MARGIN = 0.02
"""Accuracies whose difference surely lies within it are called close."""

RULE = (
    "The rule of the verdicts: differences are paired by seed (same data, clients, cohorts and "
    "ranks) and given with Student's two-sided 95 % interval over the seeds. *A above B* is "
    "**reproduced** if the whole interval is above zero, *A close to B* if it lies within "
    f"{100 * MARGIN:.0f} points of zero; else the claim is **not reproduced**, and the interval "
    "says whether the opposite was seen or no difference could be told. A claim about one measured "
    "number goes by its mean over the seeds. **Not testable here**: neither arm ends "
    f"{100 * FLOOR:.0f} points above the majority class, or the reason given. **Not yet run**: a "
    "run of the claim's seeds is missing. Intervals are per claim, not corrected for their "
    "number.\n"
)

Value = Callable[[Record], float]


class Finding(NamedTuple):
    """What came out for a claim."""

    ours: str
    verdict: str


class Claim(NamedTuple):
    """One of a paper's claims."""

    says: str
    published: str  # its numbers, as far as they are known
    part: str  # of the study, whose runs are the evidence; or the name of a file, or nothing
    find: Callable[[Results], Finding]
    evidence: str = ""  # the file or folder of results that shows it, if not the part's figure


def last(record: Record) -> float:
    """Test accuracy after the last round."""
    return record["history"][-1]["accuracy"]


def best(record: Record) -> float:
    """The highest test accuracy of any evaluated round."""
    return max(h["accuracy"] for h in record["history"] if "accuracy" in h)


def course(record: Record) -> float:
    """Mean test accuracy over the evaluated rounds: higher is faster."""
    return float(np.mean([h["accuracy"] for h in record["history"] if "accuracy" in h]))


class Paired(NamedTuple):
    """Two arms over the seeds they have in common."""

    first: Estimate
    second: Estimate
    difference: Estimate


def paired(
    results: Results, part: str, arms: tuple[str, str], tasks: Sequence[str], value: Value
) -> Paired | None:
    """Both arms' means over the tasks, by seed; None unless all runs of the part's seeds exist."""
    seeds = results.parts[part].seeds
    found = [[results.runs(part, arm, task) for task in tasks] for arm in arms]
    if any(len(runs) < len(seeds) for of_arm in found for runs in of_arm) or not tasks:
        return None
    first, second = (
        [float(np.mean([value(runs[seed]) for runs in of_arm])) for seed in seeds]
        for of_arm in found
    )
    return Paired(
        estimate(first),
        estimate(second),
        estimate([x - y for x, y in zip(first, second, strict=True)]),
    )


def above_floor(results: Results, part: str, arms: Sequence[str], task: str) -> bool:
    """Whether any of the arms has learned the task."""
    return any(
        np.mean([last(record) - record["summary"]["majority_accuracy"] for record in runs.values()])
        >= FLOOR
        for runs in (results.runs(part, arm, task) for arm in arms)
        if runs
    )


def higher(
    part: str,
    first: str,
    second: str,
    *,
    tasks: Sequence[str] | None = None,
    value: Value = last,
) -> Callable[[Results], Finding]:
    """Whether one arm is above another, on average over the tasks that can tell; all by default."""
    return _compared(part, (first, second), tasks, value, lambda d: d.mean - d.half > 0)


def close(
    part: str,
    first: str,
    second: str,
    *,
    tasks: Sequence[str] | None = None,
    value: Value = last,
) -> Callable[[Results], Finding]:
    """Whether two arms are surely within `MARGIN` of each other."""
    return _compared(part, (first, second), tasks, value, lambda d: abs(d.mean) + d.half <= MARGIN)


def _compared(
    part: str,
    arms: tuple[str, str],
    tasks: Sequence[str] | None,
    value: Value,
    holds: Callable[[Estimate], bool],
) -> Callable[[Results], Finding]:
    def find(results: Results) -> Finding:
        asked = results.parts[part].tasks if tasks is None else tasks
        if paired(results, part, arms, asked, value) is None:
            return Finding(progress(results, part, arms, asked), NOT_RUN)
        able = [task for task in asked if above_floor(results, part, arms, task)]
        without = ", ".join(task for task in asked if task not in able)
        found = paired(results, part, arms, able, value)
        if found is None:
            return Finding(f"no arm learns {without}", UNTESTABLE)
        text = difference_text(found) + (f" (without {without})" if without else "")
        return Finding(text, REPRODUCED if holds(found.difference) else NOT_REPRODUCED)

    return find


def progress(results: Results, part: str, arms: Sequence[str], tasks: Sequence[str]) -> str:
    """How many of the runs are there."""
    there = sum(len(results.runs(part, arm, task)) for arm in arms for task in tasks)
    return f"{there} of {len(arms) * len(tasks) * len(results.parts[part].seeds)} runs"


def untestable(reason: str) -> Callable[[Results], Finding]:
    """A claim that these runs cannot decide."""
    return lambda results: Finding(reason, UNTESTABLE)


def spread(score: Estimate) -> str:
    """Per cent, with the standard deviation over seeds.

    >>> spread(estimate([0.5, 0.6]))
    '55.0 ± 7.1'
    """
    text = f"{100 * score.mean:.1f}"
    return text if score.n < 2 else f"{text} ± {100 * score.deviation:.1f}"


def interval(difference: Estimate) -> str:
    """A difference in points with its interval.

    >>> interval(estimate([0.01, 0.02, 0.03]))
    '+2.0 [-0.5, +4.5]'
    """
    low, high = difference.mean - difference.half, difference.mean + difference.half
    return f"{100 * difference.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def difference_text(found: Paired) -> str:
    """Both arms, and their difference."""
    return f"{spread(found.first)} against {spread(found.second)}: {interval(found.difference)}"


def measured(
    part: str,
    arms: Sequence[str],
    holds: Callable[..., bool],
    tell: Callable[..., str],
    number: Callable[[list[dict[str, Any]]], float],
    *,
    task: str,
) -> Callable[[Results], Finding]:
    """A claim about one number of each run's history, a mean over seeds for each arm.

    Args:
      part: of the study.
      arms: whose runs.
      holds: whether the claim does, from one number per arm.
      tell: the numbers in words.
      number: from the history of a run.
      task: on which task.
    """

    def find(results: Results) -> Finding:
        runs = [results.runs(part, arm, task) for arm in arms]
        if any(len(of_arm) < len(results.parts[part].seeds) for of_arm in runs):
            return Finding(progress(results, part, arms, [task]), NOT_RUN)
        values = [
            float(np.mean([number(record["history"]) for record in of_arm.values()]))
            for of_arm in runs
        ]
        return Finding(tell(*values), REPRODUCED if holds(*values) else NOT_REPRODUCED)

    return find
