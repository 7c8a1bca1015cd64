"""The folder of a run, and the recorder of its history."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from filelock import FileLock

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.trees import differing_fields
from fedjax_lora.core.version import __version__
from fedjax_lora.data import Task
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.checkpoints import FOLDER as CHECKPOINTS
from fedjax_lora.runs.checkpoints import Checkpoint, CheckpointManager, Progress
from fedjax_lora.runs.config import RunConfig

CONFIG, METRICS, TIMING, SUMMARY = "config.json", "metrics.jsonl", "timing.jsonl", "summary.json"


class RunFolder:
    """Config, metrics, timing, checkpoints, figures, adapter and summary of one run.

    A round's numbers and its times are in two files, so that ``metrics.jsonl`` is the same, byte
    for byte, whenever the same config runs on the same kind of machine. The summary is written
    last: a run that has one is finished. While the folder's context is open, no other run can
    write to it.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        self._lock: FileLock | None = None

    @classmethod
    def claim(
        cls,
        path: str | pathlib.Path,
        config: RunConfig,
        *,
        overwrite: bool = False,
        resume: bool = False,
    ) -> Self:
        """Take a folder for this run; nothing is written to a folder without a run yet.

        Args:
          path: the folder.
          config: the run.
          overwrite: replace a run that the folder holds.
          resume: continue the run that the folder holds.

        Raises:
          InputError: the folder holds another run, or this one and neither ``overwrite`` nor
            ``resume`` is set, or other files; or another run is writing to it.
        """
        folder = cls(path)
        if "\0" in str(path):
            raise InputError(f"Output folder {str(path)!r} is no name of a folder.")
        if os.path.lexists(path) and not os.path.isdir(path):
            raise InputError(f"Output {path} is a file; choose a folder with --out.")
        if os.path.lexists(folder.path / CONFIG):
            folder._lock = atomic_io.lock(folder.path)
        try:
            folder._check_contents(config, overwrite=overwrite, resume=resume)
        except InputError:
            folder.release()
            raise
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Let other runs write to the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def start(self, config: RunConfig, history: Sequence[dict[str, Any]] = ()) -> None:
        """Prepare the folder for a run with this history; without one it becomes empty.

        Raises:
          InputError: the folder cannot be written, or another run has taken it meanwhile.
        """
        with atomic_io.reporting_write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = atomic_io.lock(self.path)
                self._check_contents(config, overwrite=False, resume=False)
            atomic_io.remove_partial(self.path)
            (self.path / SUMMARY).unlink(missing_ok=True)
            if not history:
                for name in (CHECKPOINTS, "adapter", "merged", "figures"):
                    atomic_io.remove_folder(self.path / name)
            self.write(CONFIG, {configs.VERSION: __version__} | configs.to_dict(config))
            self._write_lines(METRICS, history)
            # A last line may be torn, and lines of rounds after the checkpoint are repeated.
            self._write_lines(TIMING, read_lines(self.path / TIMING)[: len(history)])
            (self.path / "figures").mkdir(exist_ok=True)

    def _check_contents(self, config: RunConfig, *, overwrite: bool, resume: bool) -> None:
        """Check that the folder can be that of a run.

        Raises:
          InputError: it cannot.
        """
        files = self._files()
        if CONFIG in files and (overwrite or resume):
            return
        if resume:
            raise InputError(f"Folder {self.path} holds no run to resume: it has no {CONFIG}.")
        if CONFIG in files:
            raise InputError(self._occupied_by(config))
        if files:
            raise InputError(
                f"Output folder {self.path} holds other files ({', '.join(files[:3])}) and no "
                "run; choose a new or empty folder with --out."
            )

    def _files(self) -> list[str]:
        """Names in the folder; hidden files are locks and what was being written."""
        if not os.path.isdir(self.path):
            return []
        return sorted(name for name in os.listdir(self.path) if not name.startswith("."))

    def _occupied_by(self, config: RunConfig) -> str:
        """Say how the run in the folder differs from this one, and what to do."""
        different = differing_fields(self.read_config(), configs.to_dict(config))
        present, go_on = "this run already", "resume it with --resume, "
        if different:
            present, go_on = f"a different run ({', '.join(different[:5])})", ""
        return (
            f"Output folder {self.path} holds {present}; {go_on}choose another with --out, or "
            "replace it with --overwrite."
        )

    def read_config(self) -> dict[str, Any]:
        """Return the config of the run in the folder as JSON values; empty if it is damaged.

        Raises:
          InputError: it is a config, but with options that this version does not have.
        """
        try:
            values = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
            return configs.to_dict(configs.from_dict(values))
        except (OSError, ValueError, TypeError, RecursionError):
            return {}

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of a finished run; None if it is not finished."""
        try:
            return json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, name: str, values: Any) -> None:
        """Write one JSON file."""
        with atomic_io.reporting_write_errors(self.path):
            atomic_io.write(self.path / name, json.dumps(values, indent=2) + "\n")

    def append(self, name: str, values: Any) -> None:
        """Append one line to a JSON-lines file."""
        with (
            atomic_io.reporting_write_errors(self.path),
            (self.path / name).open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(values) + "\n")

    def _write_lines(self, name: str, lines: Iterable[Any]) -> None:
        atomic_io.write(self.path / name, "".join(json.dumps(line) + "\n" for line in lines))


def read_lines(file: pathlib.Path) -> list[dict[str, Any]]:
    """Read the records of a JSON-lines file up to the first damaged line.

    A run that was stopped while it wrote leaves such a line.
    """
    records = []
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8").splitlines():
            records.append(json.loads(line))
    return records


class Recorder:
    """The history of a run, in memory and, if the run has a folder, on disk.

    Attributes:
      history: one record for each round done.
    """

    def __init__(self, history: Sequence[dict[str, Any]]) -> None:
        self.history = list(history)

    def record(
        self,
        record: dict[str, Any],
        times: dict[str, float],
        progress: Progress,
        *,
        last: bool,
    ) -> None:
        """Add a round.

        Args:
          record: numbers of the round.
          times: seconds of the round.
          progress: the progress after it.
          last: whether the run ends or stops with it.

        Raises:
          InputError: the folder cannot be written.
        """
        self.history.append(record)


class FolderRecorder(Recorder):
    """A recorder that also writes metrics, timing and checkpoints into a run folder."""

    def __init__(
        self,
        history: Sequence[dict[str, Any]],
        folder: RunFolder,
        task: Task,
        checkpoints: CheckpointManager,
        *,
        every: int,
    ) -> None:
        """Continue the history of a folder.

        Args:
          history: one record for each round done before.
          folder: the run folder.
          task: the task, whose metric decides which checkpoint is the best.
          checkpoints: writes the checkpoints.
          every: rounds from one checkpoint to the next.
        """
        super().__init__(history)
        self._folder, self._task = folder, task
        self._checkpoints, self._every = checkpoints, every

    def record(
        self,
        record: dict[str, Any],
        times: dict[str, float],
        progress: Progress,
        *,
        last: bool,
    ) -> None:
        """Add a round to the files of the folder; see `Recorder.record`."""
        super().record(record, times, progress, last=last)
        self._folder.append(METRICS, record)
        self._folder.append(TIMING, times)
        if last or progress.round % self._every == 0:
            best_score = score(record, self._task)
            self._checkpoints.save(progress, self.history, best_score, always=last)


@contextlib.contextmanager
def recording(
    folder: RunFolder | None,
    config: RunConfig,
    task: Task,
    history: Sequence[dict[str, Any]],
    *,
    about: Callable[[], dict[str, Any]],
    checkpoints: Sequence[Checkpoint] = (),
) -> Iterator[Recorder]:
    """Record the rounds of a run, in its folder if it has one.

    Leaving the context waits until the last checkpoint is on disk.

    Args:
      folder: claimed for the run.
      config: the run.
      task: the task, whose metric decides which checkpoint is the best.
      history: one record for each round done before.
      about: returns what every checkpoint says about the run; called only if there is a folder.
      checkpoints: complete checkpoints of the run.

    Raises:
      InputError: the folder cannot be written.
    """
    if folder is None:
        yield Recorder(history)
        return
    options = config.execution
    manager = CheckpointManager(
        folder.path, about(), keep=options.checkpoint_keep, checkpoints=checkpoints
    )
    recorder = FolderRecorder(history, folder, task, manager, every=options.checkpoint_every)
    folder.start(config, history)
    with manager:
        yield recorder


def score(record: dict[str, Any], task: Task) -> float | None:
    """Return the score of a checkpoint: the task's metric, on validation data if there is.

    Args:
      record: record of the checkpoint's round.
      task: the task; the score is the negative of a metric that is an error.

    Returns:
      A number, higher is better; None if the round was not evaluated, or its model has diverged.
    """
    value = record.get(f"validation_{task.metric}", record.get(task.metric))
    if value is None:
        return None
    return -value if task.lower_is_better else value
