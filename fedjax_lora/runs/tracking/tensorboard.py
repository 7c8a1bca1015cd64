"""Event files for TensorBoard."""

import contextlib
import importlib
import pathlib
import shutil
from collections.abc import Iterator

from fedjax_lora.core.json_values import Record
from fedjax_lora.runs.tracking.base import Log, TrackedRun, Tracker, numbers


def tensorboard(*, folder: str | None = None) -> Tracker:
    """Write event files for TensorBoard.

    Args:
      folder: folder of the event files; by default ``tensorboard`` in the run folder.
    """

    @contextlib.contextmanager
    def tracker(run: TrackedRun) -> Iterator[Log]:
        make_writer = importlib.import_module("tensorboardX").SummaryWriter

        path = run.folder / "tensorboard" if folder is None else pathlib.Path(folder) / run.name
        writers = []

        def write(record: Record) -> None:
            if not writers:  # not before the run has taken its folder
                if not run.resumed:
                    shutil.rmtree(path, ignore_errors=True)
                first = record["round"]
                # Its files are named by the second: a suffix keeps those of a quick resume apart.
                writers.append(
                    make_writer(str(path), purge_step=first, filename_suffix=f".{first}")
                )
                text = "\n".join(f"    {name}: {value}" for name, value in run.config.items())
                writers[0].add_text("config", text)
            for name, value in numbers(record).items():
                writers[0].add_scalar(name, value, record["round"])
            writers[0].flush()

        try:
            yield write
        finally:
            for writer in writers:
                writer.close()

    return tracker
