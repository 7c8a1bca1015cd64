"""The folder of a run: claim, contents and files."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, Self

from filelock import FileLock

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import History, Record, as_lines
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.folder_names import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    refuse_other_files,
    visible_files,
)

TIMING, SUMMARY = "timing.jsonl", "summary.json"


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
            raise InputError(f"Output folder {str(path)!r} is not a valid folder name.")
        if os.path.lexists(path) and not os.path.isdir(path):
            raise InputError(
                f"Output {path} is a file or a link to nothing; choose a folder with --out."
            )
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

    def start(self, config: RunConfig, history: History = ()) -> None:
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
            self.write(CONFIG, configs.to_record(config))
            self._write_lines(METRICS, history)
            # A last line may be torn, and lines of rounds after the checkpoint are repeated.
            self._write_lines(TIMING, read_lines(self.path / TIMING)[: len(history)])
            (self.path / "figures").mkdir(exist_ok=True)

    def _check_contents(self, config: RunConfig, *, overwrite: bool, resume: bool) -> None:
        """Check that the folder can be that of a run.

        Raises:
          InputError: it cannot.
        """
        files = visible_files(self.path)
        if CONFIG in files and (overwrite or resume):
            return
        if resume:
            raise InputError(f"Folder {self.path} holds no run to resume: it has no {CONFIG}.")
        if CONFIG in files:
            raise InputError(self._occupied_by(config))
        refuse_other_files(self.path, "run")

    def _occupied_by(self, config: RunConfig) -> str:
        """Say how the run in the folder differs from this one, and what to do."""
        different = configs.differing_fields(self.read_config(), configs.to_record(config))
        present, go_on = "this run already", "resume it with --resume, "
        if different:
            present, go_on = f"a different run ({', '.join(different[:5])})", ""
        return (
            f"Output folder {self.path} holds {present}; {go_on}choose another with --out, or "
            "replace it with --overwrite."
        )

    def read_config(self) -> Record:
        """Return the config of the run in the folder as a record; empty if it is damaged.

        Raises:
          InputError: it is a config, but with options that this version does not have.
        """
        try:
            values = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
            return configs.to_record(configs.from_record(values))
        except (OSError, ValueError, TypeError, RecursionError):
            return {}

    def finished(self) -> Record | None:
        """Return the summary of a finished run; None if it is not finished."""
        try:
            return json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, name: str, values: object) -> None:
        """Write one JSON file."""
        with atomic_io.reporting_write_errors(self.path):
            atomic_io.write(self.path / name, json.dumps(values, indent=2) + "\n")

    def append(self, name: str, values: object) -> None:
        """Append one line to a JSON-lines file."""
        with (
            atomic_io.reporting_write_errors(self.path),
            (self.path / name).open("a", encoding="utf-8") as file,
        ):
            file.write(as_lines([values]))

    def _write_lines(self, name: str, lines: Iterable[Any]) -> None:
        atomic_io.write(self.path / name, as_lines(lines))


def read_lines(file: pathlib.Path) -> History:
    """Read the records of a JSON-lines file up to the first damaged line.

    A run that was stopped while it wrote leaves such a line.
    """
    records = []
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8").splitlines():
            records.append(json.loads(line))
    return records
