"""What a paper claims against what came out, by one rule, from the result files alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.tools.json_lines import Record
from experiments.tools.study import Results
from fedjax_lora.runs.sweep.intervals import Estimate, estimate

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
UNTESTABLE, NOT_RUN = "not testable here", "not yet run"

FLOOR = 0.05
"""What ends less than this above the majority class has learned too little to be compared."""

MARGIN = 0.02
"""Differences within it are called small."""

RULE = (
    "The rule of the verdicts: differences are paired by seed (same data, clients, cohorts and "
    "ranks) and given with Student's two-sided 95 % interval over the seeds. *A above B* is "
    "**reproduced** if the whole interval is above zero, **not reproduced** if all of it is below "
    f"+{100 * MARGIN:.0f} points; *A close to B* if it lies within {100 * MARGIN:.0f} points of "
    "zero, or all of it beyond. An effect of published size is reproduced if the whole interval is "
    "above half of it, not reproduced if all of it is below. Else these seeds cannot tell, which "
    "is **not testable here**, as is a comparison of which neither arm ends "
    f"{100 * FLOOR:.0f} points above the majority class, or for the reason given. A claim about a "
    "measured number goes by its mean over the seeds. **Not yet run**: a run of the claim's seeds "
    "is missing. Intervals are per claim, not corrected for their number.\n"
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


def values(
    results: Results, part: str, arms: Sequence[str], tasks: Sequence[str], value: Value
) -> np.ndarray | None:
    """A number of every run ``[arms, tasks, seeds]``; None unless all runs exist."""
    seeds = results.parts[part].seeds
    found = [[results.runs(part, arm, task) for task in tasks] for arm in arms]
    if any(len(runs) < len(seeds) for of_arm in found for runs in of_arm) or not tasks:
        return None
    return np.array([[[value(runs[s]) for s in seeds] for runs in of_arm] for of_arm in found])


def paired(
    results: Results, part: str, arms: tuple[str, str], tasks: Sequence[str], value: Value
) -> Paired | None:
    """Both arms' means over the tasks, by seed; None unless all runs of the part's seeds exist."""
    found = values(results, part, arms, tasks, value)
    return None if found is None else differing(*found.mean(axis=1).tolist())


def differing(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Two arms' numbers by seed, and their differences."""
    difference = [x - y for x, y in zip(first, second, strict=True)]
    return Paired(estimate(first), estimate(second), estimate(difference))


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
    return _compared(part, (first, second), tasks, value, is_above)


def close(
    part: str,
    first: str,
    second: str,
    *,
    tasks: Sequence[str] | None = None,
    value: Value = last,
) -> Callable[[Results], Finding]:
    """Whether two arms are surely within `MARGIN` of each other."""
    return _compared(part, (first, second), tasks, value, is_close)


def is_above(difference: Estimate) -> str:
    """The verdict on a difference that is claimed to be positive.

    >>> is_above(estimate([0.05, 0.06, 0.07])), is_above(estimate([-0.01, 0.0, 0.01]))
    ('reproduced', 'not testable here')
    """
    return _verdict(difference.low > 0, difference.high < MARGIN)


def is_close(difference: Estimate) -> str:
    """The verdict on a difference that is claimed to be small."""
    near = max(abs(difference.low), abs(difference.high)) <= MARGIN
    return _verdict(near, difference.low > MARGIN or difference.high < -MARGIN)


def is_as_large(effect: Estimate, published: float) -> str:
    """The verdict on an effect of published size: at least half of it."""
    return _verdict(effect.low > published / 2, effect.high < published / 2)


def judged(found: Paired, judge: Callable[[Estimate], str], more: str = "") -> Finding:
    """What came out for a difference."""
    verdict = judge(found.difference)
    cannot = "; these seeds cannot tell" * (verdict == UNTESTABLE)
    return Finding(difference_text(found) + more + cannot, verdict)


def _verdict(holds: bool, fails: bool) -> str:
    return REPRODUCED if holds else NOT_REPRODUCED if fails else UNTESTABLE


def _compared(
    part: str,
    arms: tuple[str, str],
    tasks: Sequence[str] | None,
    value: Value,
    judge: Callable[[Estimate], str],
) -> Callable[[Results], Finding]:
    def find(results: Results) -> Finding:
        if part not in results.parts:
            return Finding("not among the runs of this size", UNTESTABLE)
        asked = results.parts[part].tasks if tasks is None else tasks
        if paired(results, part, arms, asked, value) is None:
            return Finding(progress(results, part, arms, asked), NOT_RUN)
        able = [task for task in asked if above_floor(results, part, arms, task)]
        without = ", ".join(task for task in asked if task not in able)
        found = paired(results, part, arms, able, value)
        if found is None:
            return Finding(f"no arm learns {without}", UNTESTABLE)
        return judged(found, judge, f" (without {without})" * bool(without))

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
    mean, low, high = (100 * x for x in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def difference_text(found: Paired) -> str:
    """Both arms, and their difference."""
    return f"{spread(found.first)} against {spread(found.second)}: {interval(found.difference)}"


def measured(
    part: str,
    arms: Sequence[str],
    value: Callable[..., float],
    holds: Callable[[float], bool],
    tell: str,
    *,
    task: str,
) -> Callable[[Results], Finding]:
    """A claim about one number of a seed, judged by its mean over the seeds.

    Args:
      part: of the study.
      arms: whose runs.
      value: the number, from the histories of the arms' runs of a seed.
      holds: whether the claim does, from the mean.
      tell: the number in words; ``{0:...}`` is its mean, ``{1:...}`` its standard deviation.
      task: on which task.
    """

    def find(results: Results) -> Finding:
        runs = [results.runs(part, arm, task) for arm in arms]
        seeds = results.parts[part].seeds
        if any(len(of_arm) < len(seeds) for of_arm in runs):
            return Finding(progress(results, part, arms, [task]), NOT_RUN)
        found = estimate([value(*(of_arm[seed]["history"] for of_arm in runs)) for seed in seeds])
        verdict = REPRODUCED if holds(found.mean) else NOT_REPRODUCED
        return Finding(tell.format(found.mean, found.deviation), verdict)

    return find
