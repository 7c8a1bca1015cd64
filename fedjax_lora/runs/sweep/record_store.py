"""Records of finished runs, each in one file; a run that has a file is not repeated."""

import json
import pathlib
from collections.abc import Callable
from typing import Protocol

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import History, Record
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.older_versions import former_partition


class RunResult(Protocol):
    """The part of a run's result that is stored."""

    @property
    def records(self) -> History:
        """One entry per round."""
        ...

    @property
    def summary(self) -> Record:
        """Numbers of the whole run."""
        ...


def run_once(path: pathlib.Path, config: RunConfig, run: Callable[[], RunResult]) -> Record:
    """Return the record in a file if there is one; otherwise run, and write the record.

    Args:
      path: the file.
      config: config of the run, part of the record.
      run: runs it; returns an object with ``records`` and ``summary``.

    Raises:
      InputError: the file holds another run, or one of a version that divided the examples
        otherwise.
    """
    if path.exists():
        record = read(path)
        if configs.from_record(record["config"]) != config:
            raise InputError(f"{path} holds a run of another config; move it away to run this one.")
        if former := former_partition(record["summary"], config.federation.partition):
            raise InputError(f"{path} was made by {former}; move it away to run this one again.")
        return record
    result = run()
    record = {
        "config": configs.to_record(config),
        "history": result.records,
        "summary": result.summary,
    }
    atomic_io.write(path, json.dumps(record) + "\n")
    return record


def finished(folder: pathlib.Path) -> dict[RunConfig, Record]:
    """Return the records of all finished runs in a folder, by config.

    Raises:
      InputError: a file is not the record of a finished run.
    """
    records = [read(path) for path in sorted(folder.glob("*.json"))]
    return {configs.from_record(record["config"]): record for record in records}


def read(path: pathlib.Path) -> Record:
    """Read the record of one finished run.

    Raises:
      InputError: the file cannot be read, or is not such a record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        configs.from_record(record["config"])
        if not (record["history"] and record["summary"]):
            raise ValueError("nothing in it")
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(f"{path} is not a finished run ({error}); move it away.") from error
    return record
