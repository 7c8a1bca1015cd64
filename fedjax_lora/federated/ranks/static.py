"""Static rank allocations: fixed, by tiers, at random, from a table, by budget."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.federated.ranks.base import LARGEST, Allocation, Population

Shares = Literal["uniform", "heavy_tail", "normal"]
NUMBERS = {"message": 1, "memory": 4}  # per parameter; memory: value, gradient, Adam's moments
FLOAT_BYTES = 4


@checked_options
def fixed(population: Population, *, rank: int) -> Allocation:
    """Give all clients the same rank."""
    return Allocation(np.full(population.clients, rank))


@checked_options
def tiers(
    population: Population,
    *,
    ranks: Sequence[int],
    shares: Shares | Sequence[int | float] = "uniform",
) -> Allocation:
    """Give shares of the clients, chosen at random, different ranks.

    Args:
      population: the federation.
      ranks: the rank of each tier.
      shares: the share of clients in each tier, or a name, see `spread`.
    """
    return Allocation(spread("tiers", "ranks", population, ranks, shares))


def spread(
    allocation: str,
    option: str,
    population: Population,
    levels: Sequence[int | float],
    shares: Shares | Sequence[int | float],
) -> np.ndarray:
    """Assign a level to each client at random, in the given shares.

    Counts are exact up to rounding; clients left over go to the largest remainders. With `m` levels
    in the order they are listed, from `k = 0`, the named shares are

    * ``uniform``: ``1/m`` each;
    * ``heavy_tail``: ``2**-k``, each level has half as many clients as the one before;
    * ``normal``: ``binomial(m - 1, k)``, most clients in the middle.

    Papers use these names without formulas; the formulas are this library's.

    Args:
      allocation: name of the rank allocation, for errors.
      option: name of its option that lists the levels, for errors.
      population: the federation.
      levels: ranks or budgets.
      shares: one per level, of any sum, or a name.

    Returns:
      The level of each client, ``[N]``.

    Raises:
      InputError: as many shares as levels are needed, none negative, with a sum above 0.
    """
    if isinstance(shares, str):
        shares = named_shares(shares, len(levels))
    possible = len(shares) == len(levels) > 0 and min(shares) >= 0 and 0 < sum(shares) < np.inf
    if not possible:
        raise InputError(
            f"Rank allocation {allocation!r} needs as many non-negative shares as {option}, with a "
            f"finite sum above 0, got {option} {list(levels)} and shares {list(shares)}."
        )
    exact = np.asarray(shares, float) / sum(shares) * population.clients
    counts = np.floor(exact).astype(int)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: population.clients - counts.sum()]] += 1
    return population.rng.permutation(np.repeat(np.asarray(levels), counts))


def named_shares(name: Shares, count: int) -> list[int]:
    """Whole-number shares of ``count`` levels by name, see `spread`.

    >>> named_shares("heavy_tail", 4), named_shares("normal", 4)
    ([8, 4, 2, 1], [1, 3, 3, 1])
    """
    return {
        "uniform": [1] * count,
        "heavy_tail": [2 ** (count - 1 - k) for k in range(count)],
        "normal": [math.comb(count - 1, k) for k in range(count)],
    }[name]


@checked_options
def random(population: Population, *, low: int, high: int) -> Allocation:
    """Draw each client's rank uniformly from ``low`` to ``high`` inclusive."""
    if not 0 <= low <= high <= LARGEST:
        raise InputError(
            f"Rank allocation 'random' needs low <= high, both from 1 to {LARGEST}, got {low} and "
            f"{high}."
        )
    return Allocation(population.rng.integers(low, high, size=population.clients, endpoint=True))


@checked_options
def table(population: Population, *, ranks: Sequence[int], most: int | None = None) -> Allocation:
    """Give every client the rank listed for it, in the order of client ids.

    Args:
      population: the federation.
      ranks: one for each client.
      most: the rank that adapters are stored at, where that is more than any client's.
    """
    if len(ranks) != population.clients:
        raise InputError(
            f"Rank allocation 'table' lists {len(ranks)} ranks for {population.clients} clients."
        )
    if most is not None and most < max(ranks):
        raise InputError(f"Rank allocation 'table' lists rank {max(ranks)}, more than most={most}.")
    return Allocation(np.asarray(ranks), most=most)


@checked_options
def by_quality(population: Population, *, low: int, high: int) -> Allocation:
    """Give ``high`` to the high-quality clients of the partition ``quality``, ``low`` to others.

    The result of `loss_based` with a perfect score.
    """
    if population.quality is None:
        raise InputError("Rank allocation 'by_quality' needs the partition 'quality(...)'.")
    return Allocation(np.where(population.quality, high, low))


@checked_options
def budget(
    population: Population,
    *,
    bytes: Sequence[int | float],
    high: int,
    low: int = 1,
    of: Literal["message", "memory"] = "message",
    shares: Shares | Sequence[int | float] = "uniform",
) -> Allocation:
    """Give each client the largest rank up to ``high`` that fits its budget of bytes.

    Budgets are assigned to clients like the tiers of `tiers`. A component costs
    ``4 * component_size`` bytes of the uplink ``message`` (the factors in float32, without the
    indices and the head that some settings add), and four times as much training ``memory``
    (values, gradient and Adam's two moments; the base and its activations do not depend on the
    rank).

    Args:
      population: the federation.
      bytes: the budget of each tier.
      high: the largest rank.
      low: the smallest rank.
      of: whether budgets are of the uplink ``message`` or of training ``memory``.
      shares: the share of clients in each tier, or a name, see `spread`.

    Raises:
      InputError: a budget holds fewer than ``low`` components; the rank ``low`` would exceed it.
    """
    if not 1 <= low <= high:
        raise InputError(f"Rank allocation 'budget' needs 1 <= low <= high, got {low} and {high}.")
    component_bytes = NUMBERS[of] * FLOAT_BYTES * population.component_size
    budgets = spread("budget", "bytes", population, bytes, shares).astype(float)
    ranks = np.floor(np.minimum(budgets / component_bytes, high)).astype(int)
    if ranks.min() < low:
        raise InputError(
            f"Rank allocation 'budget': {budgets.min():g} bytes of {of} hold "
            f"{max(ranks.min(), 0)} components of {component_bytes} bytes, but every client needs "
            f"at least {low}."
        )
    return Allocation(ranks)


@checked_options
def by_device(
    population: Population, *, high: int, low: int = 1, seconds: int | float | None = None
) -> Allocation:
    """Give each client the largest rank up to ``high`` with which its device is in time.

    The time is that of all local steps of the client and of a model of its rank each way, in
    float32 and without what a method sends besides; the memory that of the base, the adapter, the
    head, their gradients and Adam's two moments, without activations.

    Args:
      population: the federation, with device profiles.
      high: the largest rank.
      low: the smallest rank; a client that is late even with it keeps it, and is late.
      seconds: of a round; by default those of the deadline, and without one only memory counts.

    Raises:
      InputError: no device profiles, or a device whose memory is too small for ``low``.
    """
    capacity = population.capacity
    if capacity is None:
        raise InputError(
            "Rank allocation 'by_device' needs device profiles, for example device_profiles "
            "\"classes(names=['jetson-nano', 'laptop-m1'])\"."
        )
    if not 1 <= low <= high:
        raise InputError(
            f"Rank allocation 'by_device' needs 1 <= low <= high, got {low} and {high}."
        )
    limit = capacity.deadline if seconds is None else seconds
    if not limit > 0:
        raise InputError(f"Rank allocation 'by_device' needs seconds above 0, got {limit}.")
    needed = capacity.memory(np.full(population.clients, low))
    if np.any(needed > capacity.limit):
        client = int(np.argmax(needed - capacity.limit))
        raise InputError(
            f"Rank allocation 'by_device': client {client} has {capacity.limit[client]:.3g} bytes "
            f"of memory and rank {low} needs {needed[client]:.3g}; leave out such devices, or take "
            "a smaller model."
        )
    ranks = np.full(population.clients, low)
    for rank in range(low + 1, high + 1):  # both grow with the rank
        tried = np.full(population.clients, rank)
        fits = (capacity.seconds(tried) <= limit) & (capacity.memory(tried) <= capacity.limit)
        ranks[fits] = rank
    return Allocation(ranks)
