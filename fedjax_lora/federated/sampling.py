"""Client sampling: who takes part in a round, decided on the host.

A sampler is a function from the seed, the round and the clients' weights to the ids of a cohort.
All that is random belongs to (seed, round), so that any round is planned without those before it. A
new sampler is one function and one row of `SAMPLERS`.
"""

from collections.abc import Callable

import numpy as np

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options

Sampler = Callable[[int, int, np.ndarray, int], np.ndarray]
"""``(seed, round, weight: float[N], cohort) -> int64[c]``, distinct ids, at most a cohort."""


def uniform() -> Sampler:
    """Every client equally likely, without repetition, as in FedAvg."""

    def sample(seed, round, weight, cohort):
        return np.random.default_rng([seed, 0, round]).choice(len(weight), cohort, replace=False)

    return sample


def weighted() -> Sampler:
    """Clients with probabilities proportional to their weights, one after another.

    A method that also weights by examples then counts large clients twice.
    """

    def sample(seed, round, weight, cohort):
        rng = np.random.default_rng([seed, 0, round])
        # Efraimidis & Spirakis (2006): the same draw, also where weights differ by many orders.
        return np.argsort(rng.standard_exponential(len(weight)) / weight)[:cohort]

    return sample


def round_robin() -> Sampler:
    """One cohort after another of a random order of the clients, so that all take part equally."""

    def sample(seed, round, weight, cohort):
        order = np.random.default_rng([seed, 0]).permutation(len(weight))
        return order[(round * cohort + np.arange(cohort)) % len(order)]

    return sample


@checked_options
def available(*, low: float = 0.1, high: float = 1.0) -> Sampler:
    """A uniform draw from the clients that are available in the round.

    Each client has its own probability to be available, drawn once. Where fewer are available than
    a cohort has, all of them take part; where none is, the one that is closest to it.

    Args:
      low: lowest probability of a client.
      high: highest probability of a client.
    """
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"available(low={low}, high={high}): they are probabilities, the lower one first."
        )

    def sample(seed, round, weight, cohort):
        probability = np.random.default_rng([seed, 0]).uniform(low, high, len(weight))
        rng = np.random.default_rng([seed, 0, round])
        excess = rng.random(len(weight)) - probability
        ids = np.flatnonzero(excess < 0)
        if len(ids) <= cohort:
            return ids if len(ids) else np.array([excess.argmin()])
        return rng.choice(ids, cohort, replace=False)

    return sample


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "uniform": uniform,
    "weighted": weighted,
    "round_robin": round_robin,
    "available": available,
}
"""Factories of samplers by name; options are their keyword arguments."""
