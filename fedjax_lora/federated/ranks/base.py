"""Inputs and result of a rank allocation."""

from typing import NamedTuple

import numpy as np

from fedjax_lora.federated.ranks.schedule import RankSchedule


class Population(NamedTuple):
    """The federation, as rank allocations see it."""

    clients: int  # N
    seed: int
    quality: np.ndarray | None  # bool[N], from the partition 'quality(...)'
    component_size: int  # numbers in one rank-one module, over all adapted layers

    @property
    def rng(self) -> np.random.Generator:
        """A new generator for the random draws of an allocation."""
        return np.random.default_rng([self.seed, 2])


class Allocation(NamedTuple):
    """Ranks of all clients."""

    ranks: np.ndarray  # int32[N], at the start
    schedule: RankSchedule | None = None  # changes the ranks during the run; None keeps them

    @property
    def possible(self) -> np.ndarray:
        """All ranks that may occur, possibly repeated; the largest is `R`."""
        return self.ranks if self.schedule is None else np.array(self.schedule.levels)
