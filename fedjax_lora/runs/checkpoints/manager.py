"""Writes checkpoints beside the run, and removes those that are no longer wanted."""

import concurrent.futures
import pathlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.runs.checkpoints.checkpoint import FOLDER, Checkpoint, Progress, arrays, best, save


class CheckpointManager:
    """The checkpoints of a run while it runs.

    Saving copies the arrays to the host and leaves the rest to a thread, which writes one
    checkpoint at a time. Leaving the context waits for the last one.

    (Orbax's own manager also writes in the background, but names a checkpoint before its digests
    can be in it; here the digests are written before the name.)
    """

    def __init__(
        self,
        folder: pathlib.Path,
        about: dict[str, Any],
        *,
        keep: int,
        found: Sequence[Checkpoint] = (),
    ) -> None:
        """Begin with the checkpoints there are.

        Args:
          folder: the run's.
          about: JSON values that say what the run is, for every checkpoint.
          keep: how many of the newest stay; the best one always does.
          found: whole checkpoints of this run, the only ones that are not removed at once.
        """
        self._folder, self._about, self._keep = folder, about, keep
        self._found = list(found)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Self:
        self._tidy()
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

    def save(self, progress: Progress, score: float | None = None, *, always: bool = True) -> None:
        """Begin to save a progress; its arrays may change afterwards.

        Args:
          progress: what to save.
          score: of the model, the higher the better.
          always: if the checkpoint before this one is still being written, wait for it; else the
            run does not wait and goes on without this one.

        Raises:
          InputError: the checkpoint before this one could not be written.
        """
        if not always and self._writing is not None and not self._writing.done():
            return
        self.wait()
        # Copies: on a CPU an array on the host is the device's memory, which the next round reuses.
        held = jax.tree.map(np.array, arrays(progress))
        self._writing = self._thread.submit(self._write, progress._replace(**held), score)

    def wait(self) -> None:
        """Wait until what has been saved is on disk.

        Raises:
          InputError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, progress: Progress, score: float | None) -> None:
        try:
            made = save(self._folder, progress, self._about, score)
            self._found = [c for c in self._found if c.round != made.round] + [made]
            self._tidy()
        except Exception as error:  # Orbax raises many kinds
            raise InputError(
                f"Checkpoint {self._folder / FOLDER / str(progress.round)} cannot be written "
                f"({_first_line(error)}); make room or give write permission, then resume the run."
            ) from error

    def _tidy(self) -> None:
        """Remove all checkpoints but the newest and the best."""
        first, top = len(self._found) - self._keep, best(self._found)
        self._found = [c for n, c in enumerate(self._found) if n >= first or c is top]
        wanted = {checkpoint.path.name for checkpoint in self._found}
        folder = self._folder / FOLDER
        for path in folder.glob("[0-9]*"):
            if path.name not in wanted:
                atomic_io.remove_folder(path)
        atomic_io.remove_partial(folder)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0]
