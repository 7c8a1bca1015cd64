"""The work of the experiment in files that all contenders read; no JAX, no PyTorch."""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Rounds(NamedTuple):
    """The plans of all `T` rounds."""

    id: np.ndarray  # int32[T, c]
    rank: np.ndarray  # int32[T, c]
    weight: np.ndarray  # float32[T, c]
    steps: np.ndarray  # int32[T, c]
    index: np.ndarray  # int32[T, c, s, n], rows of the training texts
    valid: np.ndarray  # bool[T, c, s, n]
    rate: np.ndarray  # float32[T]
    tested: np.ndarray  # bool[T], whether the global model is evaluated after the round

    def batches(self, round: int, k: int) -> list[np.ndarray]:
        """The rows of each step of the round's `k`-th client."""
        steps = range(int(self.steps[round, k]))
        return [self.index[round, k, s][self.valid[round, k, s]] for s in steps]

    def mean_loss(self, round: int, losses: Sequence[float]) -> float:
        """Average the clients' mean losses of a round over all examples."""
        taken = np.arange(self.valid.shape[2]) < self.steps[round][:, None]
        examples = (self.valid[round] & taken[..., None]).sum(axis=(1, 2))
        return float(np.average(losses, weights=examples))


class Work(NamedTuple):
    """The experiment."""

    folder: pathlib.Path
    tokens: int  # maximum length
    texts: dict[str, list[str]]  # train and test
    labels: dict[str, list[int]]
    rounds: Rounds
    start: dict[str, np.ndarray]  # the initial adapter, ``[R, i]`` by module name

    @property
    def model(self) -> str:
        """Folder of checkpoint, head and tokenizer."""
        return str(self.folder / "model")

    @property
    def ranks(self) -> list[int]:
        """All ranks of the rounds and that of the global adapter."""
        most = next(iter(self.start.values())).shape[0]
        return sorted({*np.unique(self.rounds.rank).tolist(), most})


def save(work: Work) -> None:
    """Save the work to its folder."""
    texts = {"tokens": work.tokens, "texts": work.texts, "labels": work.labels}
    (work.folder / "work.json").write_text(json.dumps(texts), encoding="utf-8")
    np.savez(work.folder / "rounds.npz", **work.rounds._asdict())
    start: dict = work.start
    np.savez(work.folder / "start.npz", **start)


def load(folder: pathlib.Path) -> Work:
    """Load saved work."""
    texts = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    with np.load(folder / "rounds.npz") as rounds, np.load(folder / "start.npz") as start:
        return Work(folder, **texts, rounds=Rounds(**rounds), start=dict(start))
