"""The cases and the work of a case as arrays that all contenders read; NumPy only."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np

RATE = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One setting of the benchmark."""

    model: str
    clients: int
    batch: int
    tokens: int  # maximum length
    steps: int = 2  # per client
    ranks: tuple[int, ...] = (4, 8, 16, 32, 64)  # in equal shares

    @property
    def name(self) -> str:
        """Name of its record."""
        return f"{self.model}-{self.clients}x{self.batch}x{self.tokens}"


CASES = (
    Case(model="minilm", clients=10, batch=16, tokens=64),
    Case(model="minilm", clients=10, batch=4, tokens=64),
    Case(model="minilm", clients=10, batch=1, tokens=64),
    Case(model="minilm", clients=1, batch=16, tokens=64, steps=8, ranks=(16,)),
    Case(model="minilm", clients=4, batch=16, tokens=64, steps=4, ranks=(4, 8, 16, 64)),
    Case(model="minilm", clients=64, batch=4, tokens=32),
    Case(model="minilm", clients=256, batch=1, tokens=32),
    Case(model="minilm", clients=10, batch=16, tokens=128),
    Case(model="roberta-base", clients=10, batch=16, tokens=128, steps=1),
    Case(model="roberta-base", clients=10, batch=4, tokens=32, steps=1),
)


class Work(NamedTuple):
    """The work of one round."""

    ids: np.ndarray  # int32[E, T]
    types: np.ndarray  # int32[E, T]
    length: np.ndarray  # int32[E]
    label: np.ndarray  # int32[E]
    rank: np.ndarray  # int32[c]
    index: np.ndarray  # int32[c, s, n]
    valid: np.ndarray  # bool[c, s, n]
    steps: np.ndarray  # int32[c]
    shape: (
        np.ndarray
    )  # int32[c, s, 3], texts, tokens of each and tokens in all that ours makes room for

    @property
    def tokens(self) -> int:
        """Real tokens of the round."""
        taken = np.arange(self.index.shape[1])[None] < self.steps[:, None]
        return int(np.where(self.valid & taken[..., None], self.length[self.index], 0).sum())


def save(work: Work, path: pathlib.Path) -> None:
    """Save the work for the other processes."""
    np.savez(path, **work._asdict())


def load(path: pathlib.Path) -> Work:
    """Load saved work."""
    with np.load(path) as saved:
        return Work(**{name: saved[name] for name in Work._fields})


def relative(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Relative difference of two reported losses."""
    return abs(one["loss"] - other["loss"]) / abs(other["loss"])
