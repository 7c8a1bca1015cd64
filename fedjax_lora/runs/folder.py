"""The output folder of a run, and its history in memory."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import jax
from filelock import FileLock

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.trees import differing_fields
from fedjax_lora.data import Task
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.checkpoints import FOLDER as CHECKPOINTS
from fedjax_lora.runs.checkpoints import Checkpoint, CheckpointManager, Progress
from fedjax_lora.runs.config import RunConfig

PACKAGES = ("fedjax-lora", "jax", "jaxlib", "flax", "optax", "transformers", "datasets", "numpy")

CONFIG, METRICS, TIMING, SUMMARY = "config.json", "metrics.jsonl", "timing.jsonl", "summary.json"


def environment() -> dict[str, Any]:
    """Versions and devices: what a number depends on besides the config."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "packages": versions,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


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
        """A folder this run may write to; nothing is written to a folder without a run yet.

        Raises:
          InputError: the folder holds another run, or this one and neither ``overwrite`` nor
            ``resume`` is set, or something that is no run at all; or another run is writing to it.
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
        """Make the folder that of a run which has this history; without one it becomes empty.

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
            self.write(CONFIG, configs.to_dict(config))
            self._write_lines(METRICS, history)
            self._write_lines(TIMING, self._timing(len(history)))
            (self.path / "figures").mkdir(exist_ok=True)

    def _check_contents(self, config: RunConfig, *, overwrite: bool, resume: bool) -> None:
        present = []
        if os.path.isdir(self.path):  # hidden files are locks and what was being written
            present = sorted(name for name in os.listdir(self.path) if not name.startswith("."))
        if CONFIG in present and (overwrite or resume):
            return
        if resume:
            raise InputError(f"Folder {self.path} holds no run to resume: it has no {CONFIG}.")
        if not present:
            return
        if CONFIG not in present:
            raise InputError(
                f"Output folder {self.path} holds other files ({', '.join(present[:3])}) and no "
                "run; choose a new or empty folder with --out."
            )
        different = differing_fields(self.held(), configs.to_dict(config))
        what = f"a different run ({', '.join(different[:5])})" if different else "this run already"
        go_on = "" if different else "resume it with --resume, "
        raise InputError(
            f"Output folder {self.path} holds {what}; {go_on}choose another with --out, or "
            "replace it with --overwrite."
        )

    def held(self) -> dict[str, Any]:
        """The config of the run in the folder, as JSON values; empty if it cannot be read."""
        try:
            return json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}

    def finished(self) -> dict[str, Any] | None:
        """The summary of a finished run; None if it is not finished."""
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

    def _timing(self, rounds: int) -> list[dict[str, Any]]:
        """The times of the first rounds, as far as they are there: a last line may be torn."""
        return read_lines(self.path / TIMING)[:rounds]


def read_lines(file: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file up to the first broken line, as a stopped run may leave."""
    records = []
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8").splitlines():
            records.append(json.loads(line))
    return records


Write = Callable[[Progress, dict[str, float], bool], None]
"""Takes what a run has led to so far, the times of the last round and whether it stops there."""


@contextlib.contextmanager
def journal(
    folder: RunFolder | None,
    config: RunConfig,
    task: Task,
    progress: Progress,
    *,
    about: Callable[[], dict[str, Any]],
    found: Sequence[Checkpoint] = (),
) -> Iterator[Write]:
    """Record the rounds of a run in its folder, if it has one.

    Leaving the context waits until the last checkpoint is on disk.

    Args:
      folder: claimed for the run.
      config: of the run.
      task: the run's, whose metric decides which checkpoint is the best.
      progress: the state that the run begins or continues with.
      about: returns what every checkpoint says of the run; called only if there is a folder.
      found: the run's checkpoints so far.

    Raises:
      InputError: the folder cannot be written.
    """
    if folder is None:
        yield lambda progress, times, stopping: None
        return
    how, rounds = config.execution, config.federation.rounds
    folder.start(config, progress.history)

    def write(progress: Progress, times: dict[str, float], stopping: bool) -> None:
        record = progress.history[-1]
        folder.append(METRICS, record)
        folder.append(TIMING, times)
        last = stopping or progress.round == rounds
        if last or progress.round % how.checkpoint_every == 0:
            keeper.save(progress, score(record, task), always=last)

    keeper = CheckpointManager(folder.path, about(), keep=how.checkpoint_keep, found=found)
    with keeper:
        yield write


def score(record: dict[str, Any], task: Task) -> float | None:
    """What makes one checkpoint better than another: the metric, on validation data if there is.

    Args:
      record: of the round.
      task: the run's; of a metric that is an error, the score is its negative.

    Returns:
      The higher, the better; None where the round was not evaluated, or its model has diverged.
    """
    found = record.get(f"validation_{task.metric}", record.get(task.metric))
    if found is None:
        return None
    return -found if task.lower_is_better else found
