"""Rank allocation: the ranks of clients at the start of a run, and schedules that change them."""

from collections.abc import Callable

import numpy as np

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.ranks.base import LARGEST, Allocation, Capacity, Population
from fedjax_lora.federated.ranks.loss_based import loss_based
from fedjax_lora.federated.ranks.schedule import ClientScores, RankSchedule
from fedjax_lora.federated.ranks.static import (
    budget,
    by_device,
    by_quality,
    fixed,
    random,
    table,
    tiers,
)

ALLOCATIONS: dict[str, Callable[..., Allocation]] = {
    "fixed": fixed,
    "tiers": tiers,
    "random": random,
    "table": table,
    "by_quality": by_quality,
    "budget": budget,
    "by_device": by_device,
    "loss_based": loss_based,
}


def allocate(
    spec: str,
    *,
    clients: int,
    seed: int,
    quality: np.ndarray | None = None,
    component_size: int,
    capacity: Capacity | None = None,
) -> Allocation:
    """Allocate a rank to every client.

    Args:
      spec: a name in `ALLOCATIONS`, with options.
      clients: number of clients `N`.
      seed: seed of the run.
      quality: ``bool[N]``, the high-quality clients of the partition ``quality(...)``.
      component_size: numbers in one component, see `fedjax_lora.lora.LoraSpec`.
      capacity: what the clients' devices can do.

    Returns:
      The ranks at the start, and the schedule that changes them, if any.

    >>> spec = "tiers(ranks=[4, 16], shares=[0.75, 0.25])"
    >>> allocate(spec, clients=8, seed=0, component_size=1).ranks.tolist()
    [4, 4, 16, 4, 16, 4, 4, 4]

    Raises:
      InputError: unknown allocation or option, a rank below 1 or not an integer.
    """
    population = Population(clients, seed, quality, component_size, capacity)
    allocation = registry.build(spec, ALLOCATIONS, "rank allocation", population=population)
    return checked(allocation, spec)


def checked(allocation: Allocation, spec: str) -> Allocation:
    """Return an allocation with ranks as ``int32``.

    Args:
      allocation: from a function in `ALLOCATIONS`.
      spec: its name and options, for the message.

    Raises:
      InputError: a rank that is no integer, below 1 or above `LARGEST`.
    """
    ranks = allocation.possible
    # Python integers beyond those of NumPy are objects.
    whole = all(isinstance(rank, int) for rank in ranks.ravel().tolist())
    if not whole or ranks.min() < 1 or ranks.max() > LARGEST:
        raise InputError(
            f"Rank allocation {spec!r} gives ranks that are not whole numbers from 1 to {LARGEST}."
        )
    return allocation._replace(ranks=allocation.ranks.astype(np.int32))


__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Capacity",
    "ClientScores",
    "Population",
    "RankSchedule",
    "allocate",
    "budget",
    "by_device",
    "by_quality",
    "checked",
    "fixed",
    "loss_based",
    "random",
    "table",
    "tiers",
]
