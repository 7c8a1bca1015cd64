"""Simultaneous intervals of families of comparisons, and the power of comparisons by seed."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy.special import nctdtr, stdtr, stdtrit

from fedjax_lora.runs.sweep.intervals import CONFIDENCE, Estimate, estimate

Name = TypeVar("Name")

WANTED_POWER = 0.8
MOST_SEEDS = 200
"""Beyond so many seeds a comparison is not worth planning."""


def simultaneous(
    differences: Mapping[Name, Sequence[float]], *, planned: int = 0
) -> dict[Name, Estimate]:
    """Estimate a family of differences, with intervals that hold all together at 95 %.

    Student's intervals at a level of ``1 - 0.05 / m`` for `m` comparisons (Bonferroni). They hold
    whatever the dependence between comparisons that share seeds and arms. The maximum of `m`
    statistics by resampling would be narrower, but with five seeds a sign-flip distribution has 32
    points, and a correlation matrix of rank four says little about the others.

    Args:
      differences: by comparison, one paired difference per seed.
      planned: size of the family, if some of its comparisons are not finished yet.

    >>> one = {"a": [1.0, 2.0, 3.0]}
    >>> both = simultaneous(one | {"b": [0.0, 0.1, 0.2]})
    >>> round(simultaneous(one)["a"].half, 2), round(both["a"].half, 2)
    (2.48, 3.58)
    """
    level = 1 - (1 - CONFIDENCE) / max(len(differences), planned, 1)
    return {name: _estimate_at(values, level) for name, values in differences.items()}


def _estimate_at(values: Sequence[float], level: float) -> Estimate:
    plain = estimate(values)
    factor = stdtrit(plain.n - 1, (1 + level) / 2) if plain.n > 1 else np.nan
    return plain._replace(half=float(factor * plain.deviation / plain.n**0.5))


def holm(differences: Mapping[Name, Sequence[float]]) -> dict[Name, float]:
    """Two-sided p-values of paired differences, adjusted for their number by Holm's method.

    A difference whose adjusted value is below 0.05 is not zero; all such findings of the family are
    right together at 95 %. Holm finds whatever `simultaneous` finds, and sometimes more.

    Args:
      differences: by comparison, one paired difference per seed, two seeds at least.

    >>> {k: round(p, 3) for k, p in holm({"a": [1.0, 1.1, 0.9], "b": [0.5, -0.5, 0.1]}).items()}
    {'a': 0.007, 'b': 0.921}
    """
    plain = {name: _p_value(values) for name, values in differences.items()}
    adjusted, largest = {}, 0.0
    for place, name in enumerate(sorted(plain, key=lambda name: plain[name])):
        largest = max(largest, min(1.0, (len(plain) - place) * plain[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in differences}


def _p_value(values: Sequence[float]) -> float:
    mean, deviation, _, n = estimate(values)
    if deviation == 0:
        return float(mean == 0)
    return float(2 * stdtr(n - 1, -abs(mean) / deviation * n**0.5))


def power(deviation: float, effect: float, seeds: int, *, comparisons: int = 1) -> float:
    """Compute how probably the interval of a paired difference lies above zero.

    Args:
      deviation: standard deviation of the difference over seeds.
      effect: the true difference.
      seeds: number of seeds, two at least.
      comparisons: size of the family whose `simultaneous` intervals are used.

    >>> round(power(1.0, 0.0, 5), 3), round(power(1.0, 1.0, 10), 2)
    (0.025, 0.8)
    """
    level = 1 - (1 - CONFIDENCE) / (2 * comparisons)
    bound = stdtrit(seeds - 1, level)
    return float(1 - nctdtr(seeds - 1, effect / deviation * seeds**0.5, bound))


def seeds_for(
    deviation: float, effect: float, *, comparisons: int = 1, wanted: float = WANTED_POWER
) -> int | None:
    """The fewest seeds that give this power; None if it takes more than `MOST_SEEDS`.

    >>> seeds_for(1.0, 1.0), seeds_for(1.0, 0.01)
    (10, None)
    """
    if deviation == 0:
        return 2
    counts = range(2, MOST_SEEDS + 1)
    return next(
        (n for n in counts if power(deviation, effect, n, comparisons=comparisons) >= wanted), None
    )
