"""What a rank allocation is made from, and what it is."""

from typing import NamedTuple

import numpy as np

from fedjax_lora.federated.ranks.schedule import RankSchedule


class Population(NamedTuple):
    """What a rule knows about the federation."""

    clients: int  # N
    seed: int
    quality: np.ndarray | None  # bool[N], from the partition 'quality(...)'
    component_size: int  # numbers in one rank-one module, over all adapted layers

    @property
    def rng(self) -> np.random.Generator:
        """The draws of an allocation, from the first."""
        return np.random.default_rng([self.seed, 2])


class Allocation(NamedTuple):
    """Who has which rank."""

    ranks: np.ndarray  # int32[N], at the start
    schedule: RankSchedule | None = None  # how they change, if they do

    @property
    def possible(self) -> np.ndarray:
        """All ranks that may occur, with repetitions; the largest is `R`."""
        return self.ranks if self.schedule is None else np.array(self.schedule.levels)
