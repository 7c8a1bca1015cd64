"""Ranks that do not look at what clients learn: given, by share, at random, by budget."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.ranks.base import Allocation, Population

Shares = Literal["uniform", "heavy_tail", "normal"]
NUMBERS = {"message": 1, "memory": 4}  # memory: value, gradient and Adam's two moments
FLOAT_BYTES = 4


def fixed(population: Population, *, rank: int) -> Allocation:
    """The same rank for everybody."""
    return Allocation(np.full(population.clients, rank))


def tiers(
    population: Population,
    *,
    ranks: Sequence[int],
    shares: Shares | Sequence[int | float] = "uniform",
) -> Allocation:
    """Rank levels by share of the clients, spread at random; see `spread` for the shares."""
    return Allocation(spread("tiers", "ranks", population, ranks, shares))


def spread(
    rule: str,
    what: str,
    population: Population,
    levels: Sequence[int | float],
    shares: Shares | Sequence[int | float],
) -> np.ndarray:
    """Each client's level, spread at random.

    Counts are exact up to rounding: the largest remainders get the clients left over. With `m`
    levels in the order they are listed, from `k = 0`, the named shares are

    * ``uniform``: ``1/m`` each;
    * ``heavy_tail``: ``2**-k``, each level has half as many clients as the one before;
    * ``normal``: ``binomial(m - 1, k)``, most clients in the middle.

    Papers use these names without formulas; these are ours.
    """
    if isinstance(shares, str):
        shares = named_shares(shares, len(levels))
    possible = len(shares) == len(levels) > 0 and min(shares) >= 0 and 0 < sum(shares) < np.inf
    if not possible:
        raise InputError(
            f"Rank allocation {rule!r} needs as many non-negative shares as {what}, got {what} "
            f"{list(levels)} and shares {list(shares)}."
        )
    exact = np.asarray(shares, float) / sum(shares) * population.clients
    counts = np.floor(exact).astype(int)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: population.clients - counts.sum()]] += 1
    return population.rng.permutation(np.repeat(np.asarray(levels), counts))


def named_shares(name: Shares, count: int) -> list[int]:
    """See `spread`.

    >>> named_shares("heavy_tail", 4), named_shares("normal", 4)
    ([8, 4, 2, 1], [1, 3, 3, 1])
    """
    return {
        "uniform": [1] * count,
        "heavy_tail": [2 ** (count - 1 - k) for k in range(count)],
        "normal": [math.comb(count - 1, k) for k in range(count)],
    }[name]


def random(population: Population, *, low: int, high: int) -> Allocation:
    """A rank for each client, uniform from ``low`` to ``high`` inclusive."""
    if not 0 <= low <= high < 2**31:
        raise InputError(f"Rank allocation 'random' needs low <= high, got {low} and {high}.")
    return Allocation(population.rng.integers(low, high, size=population.clients, endpoint=True))


def table(population: Population, *, ranks: Sequence[int]) -> Allocation:
    """An explicit rank for every client, in the order of their ids."""
    if len(ranks) != population.clients:
        raise InputError(
            f"Rank allocation 'table' lists {len(ranks)} ranks for {population.clients} clients."
        )
    return Allocation(np.asarray(ranks))


def by_quality(population: Population, *, low: int, high: int) -> Allocation:
    """``high`` for the clients whose data the partition ``quality`` made balanced, else ``low``.

    What `loss_based` finds if its score is perfect.
    """
    if population.quality is None:
        raise InputError("Rank allocation 'by_quality' needs the partition 'quality(...)'.")
    return Allocation(np.where(population.quality, high, low))


def budget(
    population: Population,
    *,
    bytes: Sequence[int | float],
    high: int,
    low: int = 1,
    of: Literal["message", "memory"] = "message",
    shares: Shares | Sequence[int | float] = "uniform",
) -> Allocation:
    """The largest rank up to ``high`` that fits a client's budget of bytes.

    Budgets are levels spread over the clients like those of `tiers`. A component costs
    ``4 * component_size`` bytes of the uplink ``message`` (the factors in float32, without the
    indices and the head that some settings add), four times as much training ``memory`` (values,
    gradient, and Adam's two moments; the base and its activations do not depend on the rank).

    Raises:
      InputError: a budget that holds fewer than ``low`` components. Raising that client to ``low``
        all the same would break its budget.
    """
    if not 1 <= low <= high:
        raise InputError(f"Rank allocation 'budget' needs 1 <= low <= high, got {low} and {high}.")
    one = NUMBERS[of] * FLOAT_BYTES * population.component_size
    most = spread("budget", "bytes", population, bytes, shares).astype(float)
    ranks = np.floor(np.minimum(most / one, high)).astype(int)
    if ranks.min() < low:
        raise InputError(
            f"Rank allocation 'budget': {most.min():g} bytes of {of} hold {max(ranks.min(), 0)} "
            f"components of {one} bytes, but every client needs at least {low}."
        )
    return Allocation(ranks)
