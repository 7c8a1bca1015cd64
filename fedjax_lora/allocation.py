"""Which client gets which rank."""

from collections.abc import Callable, Sequence

import numpy as np

from fedjax_lora import specs
from fedjax_lora.errors import InputError


def fixed(*, clients: int, rng: np.random.Generator, quality: object, rank: int) -> np.ndarray:
    """The same rank for everybody."""
    return np.full(clients, rank)


def tiers(
    *,
    clients: int,
    rng: np.random.Generator,
    quality: object,
    ranks: Sequence[int],
    shares: Sequence[int | float] | None = None,
) -> np.ndarray:
    """Rank levels by share of the clients (equal shares by default), spread at random.

    Counts are exact up to rounding: the largest remainders get the clients left over.
    """
    shares = [1.0] * len(ranks) if shares is None else shares
    possible = len(shares) == len(ranks) > 0 and min(shares) >= 0 and 0 < sum(shares) < np.inf
    if not possible:
        raise InputError(
            f"Rank allocation 'tiers' needs as many non-negative shares as ranks, got ranks "
            f"{list(ranks)} and shares {list(shares)}."
        )
    exact = np.asarray(shares, float) / sum(shares) * clients
    counts = np.floor(exact).astype(int)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: clients - counts.sum()]] += 1
    return rng.permutation(np.repeat(np.asarray(ranks), counts))


def random(
    *, clients: int, rng: np.random.Generator, quality: object, low: int, high: int
) -> np.ndarray:
    """A rank for each client, uniform from ``low`` to ``high`` inclusive."""
    if low > high:
        raise InputError(f"Rank allocation 'random' needs low <= high, got {low} and {high}.")
    return rng.integers(low, high, size=clients, endpoint=True)


def table(
    *, clients: int, rng: np.random.Generator, quality: object, ranks: Sequence[int]
) -> np.ndarray:
    """An explicit rank for every client, in the order of their ids."""
    if len(ranks) != clients:
        raise InputError(f"Rank allocation 'table' lists {len(ranks)} ranks for {clients} clients.")
    return np.asarray(ranks)


def by_quality(
    *, clients: int, rng: np.random.Generator, quality: np.ndarray | None, low: int, high: int
) -> np.ndarray:
    """``high`` for the clients whose data the partition ``quality`` made balanced, else ``low``.

    What loss-based allocation (Byun & Lee, arXiv 2406.17477) finds if its score is perfect.
    """
    if quality is None:
        raise InputError("Rank allocation 'by_quality' needs the partition 'quality(...)'.")
    return np.where(quality, high, low)


ALLOCATIONS: dict[str, Callable[..., np.ndarray]] = {
    "fixed": fixed,
    "tiers": tiers,
    "random": random,
    "table": table,
    "by_quality": by_quality,
}


def allocate(
    spec: str, *, clients: int, seed: int, quality: np.ndarray | None = None
) -> np.ndarray:
    """Ranks of all clients, ``int32[N]``.

    >>> allocate("tiers(ranks=[4, 16], shares=[0.75, 0.25])", clients=8, seed=0).tolist()
    [4, 4, 16, 4, 16, 4, 4, 4]

    Raises:
      InputError: unknown rule or option, a rank below 1 or not an integer.
    """
    rng = np.random.default_rng([seed, 2])
    ranks = specs.build(
        spec, ALLOCATIONS, "rank allocation", clients=clients, rng=rng, quality=quality
    )
    if not np.issubdtype(ranks.dtype, np.integer) or ranks.min() < 1 or ranks.max() >= 2**31:
        raise InputError(
            f"Rank allocation {spec!r} gives ranks that are not integers of at least 1."
        )
    return ranks.astype(np.int32)
