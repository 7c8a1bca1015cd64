"""Means over seeds with standard deviations and Student's two-sided 95 % confidence intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean over seeds; deviation and interval are NaN for a single seed."""

    mean: float
    deviation: float  # sample standard deviation
    half: float  # half the width of the interval
    n: int

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.half


def spread(values: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute mean, sample standard deviation and half the interval's width over the first axis."""
    x = np.asarray(values, np.float64)
    n = len(x)
    if n < 2:
        undefined = np.full(x.shape[1:], np.nan)
        return x.mean(axis=0), undefined, undefined
    deviation = x.std(axis=0, ddof=1)
    return x.mean(axis=0), deviation, stdtrit(n - 1, (1 + CONFIDENCE) / 2) * deviation / n**0.5


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean of one number per seed.

    >>> [round(number, 3) for number in estimate([1.0, 2.0, 3.0])]
    [2.0, 1.0, 2.484, 3]
    """
    return Estimate(*map(float, spread(values)), n=len(values))
