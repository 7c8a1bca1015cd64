"""Verdicts on the claims of papers, by one rule, from the result files alone."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.tools.json_lines import Record
from experiments.tools.study import Results
from fedjax_lora.runs.sweep.intervals import Estimate, estimate

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
UNTESTABLE, NOT_RUN = "not testable here", "not yet run"

FLOOR = 0.05
"""An arm that ends less than this above the majority class has learned too little to compare."""

MARGIN = 0.02
"""Differences within this margin are small."""

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
    """Result and verdict for a claim."""

    ours: str
    verdict: str
    difference: Estimate | None = None  # the paired difference that was judged


class Claim(NamedTuple):
    """A claim of a paper.

    Attributes:
      says: the claim.
      published: its published numbers, if known.
      part: part of the study whose runs are the evidence, or a file name, or empty.
      find: computes the finding.
      evidence: result file that shows it, if not the part's figure.
    """

    says: str
    published: str
    part: str
    find: Callable[[Results], Finding]
    evidence: str = ""


def last(record: Record) -> float:
    """Test accuracy after the last round."""
    return record["history"][-1]["accuracy"]


def best(record: Record) -> float:
    """Highest test accuracy of all evaluated rounds."""
    return max(h["accuracy"] for h in record["history"] if "accuracy" in h)


def course(record: Record) -> float:
    """Mean test accuracy over the evaluated rounds; higher means faster learning."""
    return float(np.mean([h["accuracy"] for h in record["history"] if "accuracy" in h]))


class Paired(NamedTuple):
    """Estimates of two arms and of their difference, over their common seeds."""

    first: Estimate
    second: Estimate
    difference: Estimate


def values(
    results: Results, part: str, arms: Sequence[str], tasks: Sequence[str], value: Value
) -> np.ndarray | None:
    """Compute a number of every run, ``[arms, tasks, seeds]``; None unless all runs exist."""
    seeds = results.parts[part].seeds
    found = [[results.runs(part, arm, task) for task in tasks] for arm in arms]
    if any(len(runs) < len(seeds) for of_arm in found for runs in of_arm) or not tasks:
        return None
    return np.array([[[value(runs[s]) for s in seeds] for runs in of_arm] for of_arm in found])


def paired(
    results: Results, part: str, arms: tuple[str, str], tasks: Sequence[str], value: Value
) -> Paired | None:
    """Compare two arms by seed, averaged over the tasks; None unless all runs exist."""
    found = values(results, part, arms, tasks, value)
    return None if found is None else differing(*found.mean(axis=1).tolist())


def differing(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare two arms by their numbers per seed."""
    difference = [x - y for x, y in zip(first, second, strict=True)]
    return Paired(estimate(first), estimate(second), estimate(difference))


def above_floor(results: Results, part: str, arms: Sequence[str], task: str) -> bool:
    """Whether any of the arms ends at least `FLOOR` above the majority class."""
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
    """Claim that one arm is above another, on average over the tasks that were learned."""
    return _compared(part, (first, second), tasks, value, is_above)


def close(
    part: str,
    first: str,
    second: str,
    *,
    tasks: Sequence[str] | None = None,
    value: Value = last,
) -> Callable[[Results], Finding]:
    """Claim that two arms are within `MARGIN` of each other."""
    return _compared(part, (first, second), tasks, value, is_close)


def is_above(difference: Estimate) -> str:
    """Judge a difference that is claimed to be positive.

    >>> is_above(estimate([0.05, 0.06, 0.07])), is_above(estimate([-0.01, 0.0, 0.01]))
    ('reproduced', 'not testable here')
    """
    return _verdict(difference.low > 0, difference.high < MARGIN)


def is_close(difference: Estimate) -> str:
    """Judge a difference that is claimed to be small."""
    near = max(abs(difference.low), abs(difference.high)) <= MARGIN
    return _verdict(near, difference.low > MARGIN or difference.high < -MARGIN)


def is_as_large(effect: Estimate, published: float) -> str:
    """Judge an effect of published size: at least half of it."""
    return _verdict(effect.low > published / 2, effect.high < published / 2)


def judged(found: Paired, judge: Callable[[Estimate], str], more: str = "") -> Finding:
    """Format a difference and judge it."""
    verdict = judge(found.difference)
    note = "; these seeds cannot tell" * (verdict == UNTESTABLE)
    return Finding(difference_text(found) + more + note, verdict, found.difference)


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
        chosen = results.parts[part].tasks if tasks is None else tasks
        if paired(results, part, arms, chosen, value) is None:
            return Finding(progress(results, part, arms, chosen), NOT_RUN)
        learned = [task for task in chosen if above_floor(results, part, arms, task)]
        without = ", ".join(task for task in chosen if task not in learned)
        found = paired(results, part, arms, learned, value)
        if found is None:
            return Finding(f"no arm learns {without}", UNTESTABLE)
        return judged(found, judge, f" (without {without})" * bool(without))

    return find


def progress(results: Results, part: str, arms: Sequence[str], tasks: Sequence[str]) -> str:
    """Describe how many of the runs are finished."""
    finished = sum(len(results.runs(part, arm, task)) for arm in arms for task in tasks)
    return f"{finished} of {len(arms) * len(tasks) * len(results.parts[part].seeds)} runs"


def untestable(reason: str) -> Callable[[Results], Finding]:
    """Claim that these runs cannot decide."""
    return lambda results: Finding(reason, UNTESTABLE)


def spread(score: Estimate) -> str:
    """Format a score in per cent with the standard deviation over seeds.

    >>> spread(estimate([0.5, 0.6]))
    '55.0 ± 7.1'
    """
    text = f"{100 * score.mean:.1f}"
    return text if score.n < 2 else f"{text} ± {100 * score.deviation:.1f}"


def interval(difference: Estimate) -> str:
    """Format a difference in percentage points with its interval.

    >>> interval(estimate([0.01, 0.02, 0.03]))
    '+2.0 [-0.5, +4.5]'
    """
    mean, low, high = (100 * x for x in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def difference_text(found: Paired) -> str:
    """Format two arms and their difference."""
    return f"{spread(found.first)} against {spread(found.second)}: {interval(found.difference)}"


def measured(
    part: str,
    arms: Sequence[str],
    value: Callable[..., float],
    holds: Callable[[float], bool],
    text: str,
    *,
    task: str,
) -> Callable[[Results], Finding]:
    """Claim about one number per seed, judged by its mean over the seeds.

    Args:
      part: part of the study.
      arms: arms of the runs.
      value: the number, computed from the histories of the arms' runs of a seed.
      holds: whether the claim holds for a mean.
      text: format of the finding; ``{0:...}`` is the mean, ``{1:...}`` the standard deviation.
      task: task of the runs.
    """

    def find(results: Results) -> Finding:
        runs = [results.runs(part, arm, task) for arm in arms]
        seeds = results.parts[part].seeds
        if any(len(of_arm) < len(seeds) for of_arm in runs):
            return Finding(progress(results, part, arms, [task]), NOT_RUN)
        found = estimate([value(*(of_arm[seed]["history"] for of_arm in runs)) for seed in seeds])
        verdict = REPRODUCED if holds(found.mean) else NOT_REPRODUCED
        return Finding(text.format(found.mean, found.deviation), verdict)

    return find
