"""Paired differences of methods: sentences, a table and a figure, from the result files alone."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.papers.fed_plora_vs_flexlora import (
    BY_EXAMPLES,
    CONTROL,
    DEEPER,
    KEPT,
    METHODS,
    MIXES,
    PAIR,
    ZEROED,
)
from experiments.tools.claims import Paired, Value, best, interval, last, paired, values
from experiments.tools.figures import TASK_NAMES
from experiments.tools.markdown import as_table
from experiments.tools.statistics import simultaneous
from experiments.tools.study import Results
from fedjax_lora.runs.figure_style import BLUE, GREY, ORANGE, panels, style_axes
from fedjax_lora.runs.sweep.intervals import Estimate, estimate

PAIRS = (
    PAIR,
    *itertools.combinations(("replication", "masked mean", "HLoRA", "raFLoRA"), 2),
    *itertools.product(("replication", "HLoRA"), (KEPT, ZEROED)),
    (KEPT, ZEROED),
)
"""The compared pairs: the question, and rules to merge components that not all clients have."""

COLUMNS = 3

FAR = 0.05
"""Far above means at least this; the paper's 39 % of a baseline's accuracy would be much more."""

MEAN = "mean of the tasks and mixes"

MEASURES: dict[str, Value] = {"last round": last, "best round": best}
"""FedRoRA's tables report something close to the best round."""


def outcome(results: Results) -> str:
    """Format the conclusions and the table of paired differences."""
    return "\n".join([*_sentences(results), _differences(results)])


def settings(results: Results, mix: str | None = None) -> list[str]:
    """Names of the parts with all methods, each a task with a mix of ranks; of one mix, or all."""
    every = [name for name, part in results.parts.items() if set(part.arms) == set(METHODS)]
    return [name for name in every if mix is None or name.endswith(mix)]


def plainly(difference: Estimate) -> str:
    """State which of the two papers the pair's interval supports.

    >>> plainly(estimate([0.01, -0.01, 0.005]))
    'Fed-PLoRA is not far above FlexLoRA: 5 points or more are ruled out. No difference is seen.'
    >>> plainly(estimate([0.02, 0.03, 0.025]))
    'Fed-PLoRA is not far above FlexLoRA: 5 points or more are ruled out. It is above by less.'
    """
    first, second = PAIR
    far = f"{100 * FAR:.0f} points or more"
    if difference.low >= FAR:
        return f"{first} is far above {second}, by {far}, as its paper says."
    if difference.high >= FAR:
        return f"Whether {first} is far above {second} cannot be told: more seeds are needed."
    seen = {1: "It is above by less.", 0: "No difference is seen.", -1: "It is below."}
    return f"{first} is not far above {second}: {far} are ruled out. {seen[side(difference)]}"


def _sentences(results: Results) -> Iterator[str]:
    together = family(results)
    if PAIR in together:
        yield f"**{plainly(together[PAIR])}** {TOGETHER}\n"
    for pair in PAIRS:
        yield "* " + _apart(results, pair, together.get(pair))
    if DEEPER in results.parts:
        yield "* " + _deeper(results)
    yield "* " + _weighted(results)
    yield ""


TOGETHER = (
    f"The intervals of the first sentences below hold all {len(PAIRS)} together at 95 %; those of "
    "the parts and of the table are of one comparison each."
)


def family(results: Results) -> dict[tuple[str, str], Estimate]:
    """The differences over all settings of the finished pairs, with simultaneous intervals."""
    found = {pair: by_seed(results, pair, settings(results), last) for pair in PAIRS}
    finished = {pair: values for pair, values in found.items() if values is not None}
    return simultaneous(finished, planned=len(PAIRS))


def _apart(results: Results, pair: tuple[str, str], found: Estimate | None) -> str:
    """Describe the difference over all settings, and by mix and measure."""
    if found is None:
        return f"{pair[0]} and {pair[1]}: not yet run."
    by = {f"{mix} mix": over_settings(results, pair, settings(results, mix), last) for mix in MIXES}
    by["best round"] = over_settings(results, pair, settings(results), best)
    parts = [f"{name} {interval(d)}, {WORDS[side(d)]}" for name, d in by.items() if d]
    return f"{sentence(pair, found)} Taken apart: {'; '.join(parts)}."


def _weighted(results: Results) -> str:
    """Describe the difference of the pair with equal weighting."""
    pair, names = (BY_EXAMPLES, PAIR[1]), [n for n in results.parts if n.endswith(CONTROL)]
    found = over_settings(results, pair, names, last)
    text = sentence(pair, found) if found else "not yet run."
    return f"With both weighing clients by examples (uniform mix of ranks): {text}"


WORDS = {1: "above", 0: "not told apart", -1: "below"}


def _deeper(results: Results) -> str:
    """Describe the difference on all layers of MiniLM and compare it with three layers."""
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
    """Describe an interval in words.

    >>> sentence(("A", "B"), estimate([0.02, 0.03, 0.025]))
    'A is above B: +2.5 [+1.3, +3.7] points at 95 %.'
    >>> sentence(("A", "B"), estimate([0.02, -0.02, 0.0]))
    'A and B: no difference beyond 5.0 points at 95 % (+0.0 [-5.0, +5.0]).'
    """
    first, second = pair
    if side(difference):
        where = WORDS[side(difference)]
        return f"{first} is {where} {second}: {interval(difference)} points at 95 %."
    bound = 100 * max(-difference.low, difference.high)
    return (
        f"{first} and {second}: no difference beyond {bound:.1f} points at 95 % "
        f"({interval(difference)})."
    )


def side(difference: Estimate) -> int:
    """Sign of the interval; 0 if it contains zero."""
    return int(difference.low > 0) - int(difference.high < 0)


def over_settings(
    results: Results, pair: tuple[str, str], names: Sequence[str], value: Value
) -> Estimate | None:
    """Average the difference over tasks and mixes; None if a run is missing."""
    found = by_seed(results, pair, names, value)
    return None if found is None else estimate(found)


def by_seed(
    results: Results, pair: tuple[str, str], names: Sequence[str], value: Value
) -> list[float] | None:
    """The difference of each seed, averaged over tasks and mixes; None if a run is missing."""
    found = [values(results, name, pair, results.parts[name].tasks, value) for name in names]
    there = [of_name for of_name in found if of_name is not None]
    if len(there) < len(names) or not names:
        return None
    first, second = np.concatenate(there, axis=1).mean(axis=1)
    return (first - second).tolist()


def _one(results: Results, name: str, pair: tuple[str, str], value: Value) -> Paired | None:
    return paired(results, name, pair, results.parts[name].tasks, value)


def differences(
    results: Results, pair: tuple[str, str], value: Value
) -> dict[str, Estimate | None]:
    """Paired differences in every setting and over all; None where runs are missing."""
    names = [n for n, part in results.parts.items() if part.shown and set(pair) <= set(part.arms)]
    each = {name: _one(results, name, pair, value) for name in names}
    found = {name: one.difference if one else None for name, one in each.items()}
    for mix in MIXES:
        found[f"{mix} mix"] = over_settings(results, pair, settings(results, mix), value)
    return found | {MEAN: over_settings(results, pair, settings(results), value)}


def _differences(results: Results) -> str:
    """Tabulate paired differences after the last and at the best round."""
    columns = [*differences(results, PAIR, last)]
    lines = []
    for pair in PAIRS:
        for measure, value in MEASURES.items():
            found = differences(results, pair, value)
            cells = [interval(one) if (one := found.get(name)) else "-" for name in columns]
            lines.append([f"{pair[0]} - {pair[1]}", measure, *cells])
    return as_table(["difference, points [95 % interval]", "measure", *columns], lines)


def known(results: Results) -> dict[tuple[str, str], dict[str, Estimate]]:
    """Differences after the last round whose runs are all finished."""
    found = {pair: differences(results, pair, last) for pair in PAIRS}
    known = {pair: {k: d for k, d in of.items() if d} for pair, of in found.items()}
    return {pair: of for pair, of in known.items() if of}


def _setting(name: str) -> str:
    """A setting in words.

    >>> _setting("sst2_heavy_tail"), _setting("uniform mix")
    ('SST-2, heavy tail', 'both tasks, uniform')
    """
    if name in (MEAN, DEEPER):
        return name.replace("_", " ")
    task = next((task for task in TASK_NAMES if name.startswith(task)), "")
    mix = name.removeprefix(task).removesuffix(" mix").replace("_", " ").strip()
    return f"{TASK_NAMES.get(task, 'both tasks')}, {mix}"


def figures(results: Results) -> dict[str, Figure]:
    """Draw every difference with its interval, one panel per pair of methods."""
    found = known(results)
    if not found:
        return {}
    figure, every_axes = panels(len(found), columns=COLUMNS)
    reach = 105 * max(max(-d.low, d.high) for of in found.values() for d in of.values())
    rows = [*dict.fromkeys(name for of in found.values() for name in of)][::-1]
    for axes, (pair, of) in zip(every_axes, found.items(), strict=True):
        _intervals(axes, of, rows)
        axes.set(xlim=(-reach, reach), ylim=(-0.6, len(rows) - 0.4))
        axes.set_title(f"{pair[0]} minus {pair[1]}", fontsize=10)
    for axes in every_axes[::COLUMNS]:
        axes.set_yticks(range(len(rows)), [*map(_setting, rows)], fontsize=8)
    for axes in every_axes[-COLUMNS:]:
        axes.set_xlabel("difference of test accuracy after\nthe last round, percentage points")
    return {"differences": figure}


def _intervals(axes: Axes, of: Mapping[str, Estimate], rows: Sequence[str]) -> None:
    """Draw the differences of one pair at the rows of their settings."""
    for name, one in of.items():
        bar = {"fmt": "o", "ms": 4, "capsize": 3, "color": ORANGE if name == MEAN else BLUE}
        axes.errorbar(100 * one.mean, rows.index(name), xerr=100 * one.half, **bar)
    axes.axvline(0, color=GREY, lw=1)
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    style_axes(axes, rounds=False)
