"""Partition of a training set over clients.

Every example is assigned to exactly one client. A client with fewer than `min_examples` then
receives examples, drawn at random, one at a time from the client that has the most at that moment
(at random if several have).
"""

import heapq
import itertools
from typing import NamedTuple

import numpy as np

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.data.partitioners import PARTITIONERS, Partitioner, need_classes


class Partition(NamedTuple):
    """Examples of each of `N` clients.

    Attributes:
      indices: `N` ascending `int64` arrays that together contain every example exactly once.
      quality: `bool[N]`, clients with a balanced class mix (partitioner `quality` only), or None.
    """

    indices: tuple[np.ndarray, ...]
    quality: np.ndarray | None = None


def partition(
    partitioner: str | Partitioner,
    labels: np.ndarray,
    *,
    clients: int,
    seed: int,
    min_examples: int = 1,
    groups: np.ndarray | None = None,
) -> Partition:
    """Assign examples to clients.

    Args:
      partitioner: a name in `PARTITIONERS`, with options, or a function such as `dirichlet` makes.
      labels: `int[E]` class indices, or scores for partitioners that do not use classes.
      clients: number of clients `N`.
      seed: seed of all random choices.
      min_examples: smallest number of examples of a client.
      groups: `int[E]` natural client of each example, for `natural`.

    Raises:
      InputError: unknown partitioner or option, or a request that cannot be met.
    """
    if isinstance(partitioner, str):
        partitioner = registry.build(partitioner, PARTITIONERS, "partition")
    labels = np.asarray(labels)
    if clients < 1 or min_examples < 0:
        raise InputError(
            f"{clients} clients with at least {min_examples} examples each: ask for at least one "
            "client and a minimum that is not negative."
        )
    if clients * min_examples > len(labels):
        raise InputError(
            f"{clients} clients with at least {min_examples} examples each need "
            f"{clients * min_examples} examples, but there are {len(labels)}; ask for fewer."
        )
    if groups is not None and len(groups) != len(labels):
        raise InputError(
            f"There are {len(groups)} group codes for {len(labels)} labels; pass both."
        )
    rng = np.random.default_rng(seed)
    assign = partitioner(labels, groups, clients, rng)
    members = _members(assign.owner, clients)
    _level(members, min_examples, rng)
    return Partition(tuple(np.sort(part) for part in members), assign.quality)


def _members(owner: np.ndarray, clients: int) -> list[np.ndarray]:
    """Return the examples of each client, ascending."""
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(clients + 1))
    return [order[begin:end] for begin, end in itertools.pairwise(starts)]


def class_counts(partition: Partition, labels: np.ndarray, classes: int) -> np.ndarray:
    """Number of examples of each client and class, `int64[N, C]`."""
    labels = need_classes(labels, "class_counts")
    return np.stack([np.bincount(labels[part], minlength=classes) for part in partition.indices])


def _level(members: list[np.ndarray], minimum: int, rng: np.random.Generator) -> None:
    """Move examples to clients below `minimum` in place, one at a time from the largest client.

    This terminates: each move closes one of at most `N * minimum` gaps, and while a gap is open the
    largest client has more than `minimum`, since there are at least `N * minimum` examples.
    """
    sizes = np.array([len(part) for part in members])
    if sizes.min() >= minimum:
        return
    order = rng.permutation(len(members))  # decides among equally large clients
    sizes = sizes[order]
    # The largest client first, of equal ones that with the lowest place; none that gains is larger.
    donors = [(-int(sizes[place]), place) for place in range(len(sizes)) if sizes[place] > minimum]
    heapq.heapify(donors)
    spare: dict[int, list[np.int64]] = {}
    for place in np.flatnonzero(sizes < minimum):
        gained = []
        for _ in range(minimum - sizes[place]):
            size, largest = donors[0]
            heapq.heapreplace(donors, (size + 1, largest))
            if largest not in spare:
                spare[largest] = list(rng.permutation(members[order[largest]]))
            gained.append(spare[largest].pop())
        client = order[place]
        members[client] = np.concatenate([members[client], np.array(gained, np.int64)])
    for place, remaining in spare.items():
        members[order[place]] = np.array(remaining, np.int64)
