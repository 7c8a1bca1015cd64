"""Inputs and result of a rank allocation."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_lora.federated.ranks.schedule import RankSchedule

LARGEST = 2**31 - 1
"""The largest rank: ranks are 32-bit integers."""


class Capacity(NamedTuple):
    """What the clients' devices can do, for allocations by device."""

    seconds: Callable[[np.ndarray], np.ndarray]  # of a round at ranks int[N], float[N]
    memory: Callable[[np.ndarray], np.ndarray]  # bytes of training at ranks int[N], float[N]
    limit: np.ndarray  # float[N], bytes of memory of each device
    deadline: float  # seconds of a round, or infinity


class Population(NamedTuple):
    """The federation, as rank allocations see it."""

    clients: int  # N
    seed: int
    quality: np.ndarray | None  # bool[N], from the partition 'quality(...)'
    component_size: int  # numbers in one rank-one module, over all adapted layers
    capacity: Capacity | None = None  # of the devices, if they have profiles

    @property
    def rng(self) -> np.random.Generator:
        """A new generator for the random draws of an allocation."""
        return np.random.default_rng([self.seed, 2])


class Allocation(NamedTuple):
    """Ranks of all clients."""

    ranks: np.ndarray  # int32[N], at the start
    schedule: RankSchedule | None = None  # changes the ranks during the run; None keeps them
    most: int | None = None  # the rank `R` of storage, where it is more than any that occurs

    @property
    def possible(self) -> np.ndarray:
        """All ranks that may occur, possibly repeated."""
        return self.ranks if self.schedule is None else np.array(self.schedule.levels)

    @property
    def stored(self) -> int:
        """The rank `R` at which adapters are stored."""
        return max(int(self.possible.max()), self.most or 0)
