"""The history of a run beside its checkpoints: one file that grows, which they share.

``checkpoints/history.jsonl`` has a line for each round, the same as ``metrics.jsonl``. A checkpoint
holds how many of its bytes are its own, with their digest, and not the lines: so its size does not
grow with the rounds. Where the file is damaged or gone, the lines of ``metrics.jsonl`` serve.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from typing import NamedTuple

from fedjax_lora.core import atomic_io
from fedjax_lora.core.json_values import History, as_lines
from fedjax_lora.runs.folder_names import CHECKPOINTS, METRICS

FILE = "history.jsonl"


class HistoryPart(NamedTuple):
    """The beginning of a history, as a checkpoint names it.

    Attributes:
      rounds: its rounds, a line each.
      size: its bytes.
      sha256: their hex digest.
    """

    rounds: int
    size: int
    sha256: str


class HistoryFile:
    """The file of a run that goes on; only what is new is written to it."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Begin an empty history; nothing is written yet.

        Args:
          folder: the run folder.
        """
        self._path = folder / CHECKPOINTS / FILE
        self._digest, self._rounds, self._size = hashlib.sha256(), 0, 0

    def start(self, history: History) -> HistoryPart:
        """Write the whole history of an interrupted run, in the place of what is there."""
        data = self._count(history)
        atomic_io.write(self._path, data)
        return self._part()

    def extend(self, new: History) -> HistoryPart:
        """Add rounds; they are on disk when this returns.

        Returns:
          The whole history, for a checkpoint of its last round.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        size, data = self._size, self._count(new)
        with self._path.open("ab") as file:
            file.truncate(size)  # of a call that could not write all of its lines
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return self._part()

    def _count(self, new: History) -> bytes:
        """Return rounds as lines, and count them in."""
        data = as_lines(new).encode()
        self._digest.update(data)
        self._rounds, self._size = self._rounds + len(new), self._size + len(data)
        return data

    def _part(self) -> HistoryPart:
        return HistoryPart(self._rounds, self._size, self._digest.hexdigest())


def has_history(folder: pathlib.Path, part: HistoryPart) -> bool:
    """Return whether a file of a run folder begins with a part of a history."""
    return _read(folder, part) is not None


def read_history(folder: pathlib.Path, part: HistoryPart) -> History | None:
    """Read the beginning of a run's history.

    Args:
      folder: the run folder.
      part: which rounds.

    Returns:
      Their records; None if neither file of the folder begins with them.
    """
    data = _read(folder, part)
    return None if data is None else [json.loads(line) for line in data.splitlines()]


def _read(folder: pathlib.Path, part: HistoryPart) -> bytes | None:
    for file in (folder / CHECKPOINTS / FILE, folder / METRICS):
        with contextlib.suppress(OSError), file.open("rb") as opened:
            data = opened.read(part.size)
            if hashlib.sha256(data).hexdigest() == part.sha256:
                return data
    return None
