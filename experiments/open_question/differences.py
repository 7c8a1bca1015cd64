"""The answer to the open question: sentences, a table and a figure, from result files alone."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.drawing import COLUMNS, sheet
from experiments.markdown import as_table
from experiments.open_question import DEEPER, METHODS, PAIR
from experiments.study import Results
from experiments.verdicts import Paired, Value, best, interval, last, paired
from fedjax_lora.compare.table import Estimate, estimate
from fedjax_lora.plots import COLOURS, GREY, style

PAIRS = (
    PAIR,
    *(("replication", other) for other in METHODS if other not in ("replication", *PAIR)),
)
"""What is compared: the question, and replication against the other rules."""

FAR = 0.05
"""What counts as far above: much less than the paper's 39 % of any baseline's accuracy here."""

MEAN = "mean of the tasks and mixes"

MEASURES: dict[str, Value] = {"last round": last, "best round": best}
"""The second is how the yardstick's tables are made."""


def outcome(results: Results) -> str:
    """The verdict sentences and the table of paired differences."""
    return "\n".join([*_sentences(results), _differences(results)])


def settings(results: Results) -> list[str]:
    """The parts that report every method: a task with a mix of ranks each."""
    return [name for name, part in results.parts.items() if set(part.arms) == set(METHODS)]


def plainly(difference: Estimate) -> str:
    """Which of the two papers the pair's interval bears out.

    >>> plainly(estimate([0.01, -0.01, 0.005]))
    'FedRoRA is borne out: level; far above (5 points or more) is ruled out.'
    >>> plainly(estimate([0.02, 0.03, 0.025]))
    'Between the two papers: above, but by less than 5 points.'
    """
    low, high = difference.mean - difference.half, difference.mean + difference.half
    if low >= FAR:
        return f"Fed-PLoRA's paper is borne out: far above ({100 * FAR:.0f} points or more)."
    if high >= FAR:
        return "Neither paper is ruled out: more seeds are needed."
    if low > 0:
        return f"Between the two papers: above, but by less than {100 * FAR:.0f} points."
    level = "level" if high > 0 else "even below"
    return (
        f"FedRoRA is borne out: {level}; far above ({100 * FAR:.0f} points or more) is ruled out."
    )


def _sentences(results: Results) -> Iterator[str]:
    asked = over_settings(results, PAIR, settings(results), last)
    if asked:
        yield f"**{plainly(asked)}**\n"
    for pair in PAIRS:
        found = over_settings(results, pair, settings(results), last)
        yield "* " + (sentence(pair, found) if found else f"{pair[0]} and {pair[1]}: not yet run.")
    if DEEPER in results.parts:
        yield "* " + _deeper(results)
    yield ""


def _deeper(results: Results) -> str:
    """Whether all layers of MiniLM say what three of them say with the same task and ranks."""
    (task,) = results.parts[DEEPER].tasks
    deep, cheap = (_one(results, name, PAIR, last) for name in (DEEPER, f"{task}_uniform"))
    where = f"On all layers of MiniLM ({task}, uniform mix of ranks)"
    if deep is None or cheap is None:
        return f"{where}: not yet run."
    agree = "agree" if side(deep.difference) == side(cheap.difference) else "disagree"
    return (
        f"{where}: {sentence(PAIR, deep.difference)} Three layers on the same: "
        f"{interval(cheap.difference)}; the two {agree}."
    )


def sentence(pair: tuple[str, str], difference: Estimate) -> str:
    """What the interval says, in words.

    >>> sentence(("A", "B"), estimate([0.02, 0.03, 0.025]))
    'A is above B: +2.5 [+1.3, +3.7] points at 95 %.'
    >>> sentence(("A", "B"), estimate([0.02, -0.02, 0.0]))
    'A and B: no difference beyond 5.0 points at 95 % (+0.0 [-5.0, +5.0]).'
    """
    first, second = pair
    if side(difference):
        where = "above" if side(difference) > 0 else "below"
        return f"{first} is {where} {second}: {interval(difference)} points at 95 %."
    bound = 100 * (abs(difference.mean) + difference.half)
    return (
        f"{first} and {second}: no difference beyond {bound:.1f} points at 95 % "
        f"({interval(difference)})."
    )


def side(difference: Estimate) -> int:
    """On which side of zero the whole interval is; 0 if zero is in it."""
    return int(np.sign(difference.mean)) if abs(difference.mean) > difference.half else 0


def over_settings(
    results: Results, pair: tuple[str, str], names: Sequence[str], value: Value
) -> Estimate | None:
    """The difference as a mean over tasks and mixes, by seed; None if a run is missing."""
    if any(_one(results, name, pair, value) is None for name in names) or not names:
        return None
    by_seed = [
        sum(_difference(results, name, pair, value, seed) for name in names) / len(names)
        for seed in results.parts[names[0]].seeds
    ]
    return estimate(by_seed)


def _difference(
    results: Results, name: str, pair: tuple[str, str], value: Value, seed: int
) -> float:
    (task,) = results.parts[name].tasks
    first, second = (value(results.runs(name, arm, task)[seed]) for arm in pair)
    return first - second


def _one(results: Results, name: str, pair: tuple[str, str], value: Value) -> Paired | None:
    return paired(results, name, pair, results.parts[name].tasks, value)


def differences(
    results: Results, pair: tuple[str, str], value: Value
) -> dict[str, Estimate | None]:
    """The paired difference in every setting and over all; None where runs are missing."""
    names = [n for n, part in results.parts.items() if part.shown and set(pair) <= set(part.arms)]
    each = {name: _one(results, name, pair, value) for name in names}
    found = {name: one.difference if one else None for name, one in each.items()}
    return found | {MEAN: over_settings(results, pair, settings(results), value)}


def _differences(results: Results) -> str:
    """Paired differences after the last and at the best round."""
    columns = [*differences(results, PAIR, last)]
    lines = []
    for pair in PAIRS:
        for measure, value in MEASURES.items():
            found = differences(results, pair, value)
            cells = [interval(one) if (one := found.get(name)) else "-" for name in columns]
            lines.append([f"{pair[0]} - {pair[1]}", measure, *cells])
    return as_table(["difference, points [95 % interval]", "measure", *columns], lines)


def known(results: Results) -> dict[tuple[str, str], dict[str, Estimate]]:
    """The differences after the last round of which all runs are there."""
    found = {pair: differences(results, pair, last) for pair in PAIRS}
    known = {pair: {k: d for k, d in of.items() if d} for pair, of in found.items()}
    return {pair: of for pair, of in known.items() if of}


def figures(results: Results) -> dict[str, Figure]:
    """Every difference with its interval, a panel per pair."""
    there = known(results)
    if not there:
        return {}
    figure, panels = sheet(len(there), COLUMNS)
    reach = 105 * max(abs(d.mean) + d.half for of in there.values() for d in of.values())
    for axes, (pair, of) in zip(panels, there.items(), strict=True):
        at = range(len(of))[::-1]
        for y, (name, one) in zip(at, of.items(), strict=True):
            colour = COLOURS[1] if name == MEAN else COLOURS[0]
            axes.errorbar(100 * one.mean, y, xerr=100 * one.half, fmt="o", color=colour, capsize=3)
        axes.axvline(0, color=GREY, lw=1)
        axes.set_yticks(at, [*of], fontsize=8)
        axes.set(xlabel="points after the last round", xlim=(-reach, reach))
        axes.set_title(f"{pair[0]} - {pair[1]}", fontsize=10)
        style(axes, rounds=False)
    return {"differences": figure}
