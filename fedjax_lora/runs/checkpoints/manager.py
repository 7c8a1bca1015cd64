"""Write the checkpoints of a run in the background, and remove those that are not kept."""

import concurrent.futures
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import jax
import numpy as np

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import History
from fedjax_lora.runs.checkpoints.checkpoint import FOLDER, Checkpoint, Progress, arrays, best, save
from fedjax_lora.runs.checkpoints.history import HistoryFile


class CheckpointManager:
    """The checkpoints of a run while it goes on.

    Saving copies the arrays to the host and leaves the rest to a thread, which writes one
    checkpoint at a time, and before it the rounds since the one before. Leaving the context waits
    for the last one.

    (Orbax's own manager also writes in the background, but names a checkpoint before its digests
    can be in it; here the digests are written before the name.)
    """

    def __init__(
        self,
        folder: pathlib.Path,
        about: Mapping[str, object],
        *,
        keep: int,
        checkpoints: Sequence[Checkpoint] = (),
    ) -> None:
        """Begin with the checkpoints of an interrupted run, if there are any.

        Args:
          folder: the run folder.
          about: JSON values that say what the run is, for every checkpoint.
          keep: how many of the newest are kept; the best one always is.
          checkpoints: complete checkpoints of this run, oldest first; the run goes on from the last
            one, and all others in the folder are removed.
        """
        self._folder, self._about, self._keep = folder, dict(about), keep
        self._checkpoints = list(checkpoints)
        self._history, self._saved = HistoryFile(folder), 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Self:
        if self._checkpoints:
            history = self._checkpoints[-1].history
            self._history.start(history)
            self._saved = len(history)
        self._remove_old()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._thread:
            if kind is None:
                self.wait()

    def save(
        self,
        progress: Progress,
        history: History,
        score: float | None = None,
        *,
        always: bool = True,
    ) -> None:
        """Begin to save a progress; its arrays and the history may change afterwards.

        Args:
          progress: what to save.
          history: one record for each round done; those of earlier calls are the same.
          score: score of the model; higher is better.
          always: wait if the checkpoint before this one is still being written; otherwise this
            one is skipped.

        Raises:
          InputError: the checkpoint before this one could not be written.
        """
        if not always and self._writing is not None and not self._writing.done():
            return
        self.wait()
        # Copies: on a CPU an array on the host is the device's memory, which the next round reuses.
        copy = progress._replace(**jax.tree.map(np.array, arrays(progress)))
        new, self._saved = list(history[self._saved :]), len(history)
        self._writing = self._thread.submit(self._write, copy, new, score)

    def wait(self) -> None:
        """Wait until everything is on disk that has been saved.

        Raises:
          InputError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, progress: Progress, new: History, score: float | None) -> None:
        try:
            part = self._history.extend(new)
            made = save(self._folder, progress, part, self._about, score)
            others = [c for c in self._checkpoints if c.round != made.round]
            self._checkpoints = [*others, made]
            self._remove_old()
        except Exception as error:  # Orbax raises many types
            raise InputError(
                f"Checkpoint {self._folder / FOLDER / str(progress.round)} cannot be written "
                f"({_first_line(error)}); make room or give write permission, then resume the run."
            ) from error

    def _remove_old(self) -> None:
        """Remove all checkpoints except for the newest and the best."""
        first, top = len(self._checkpoints) - self._keep, best(self._checkpoints)
        self._checkpoints = [c for n, c in enumerate(self._checkpoints) if n >= first or c is top]
        kept = {checkpoint.path.name for checkpoint in self._checkpoints}
        folder = self._folder / FOLDER
        for path in folder.glob("[0-9]*"):
            if path.name not in kept:
                atomic_io.remove_folder(path)
        atomic_io.remove_partial(folder)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0]
