"""Finished runs of an experiment in one JSON-lines file, identified by their configs."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from experiments.tools import json_lines
from experiments.tools.json_lines import Record
from fedjax_lora import InputError, RunConfig
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.older_versions import former_partition
from fedjax_lora.runs.sweep.record_store import RunResult

Records = Mapping[RunConfig, Record]
"""Finished runs: each record has ``config``, ``history`` (one entry per round) and ``summary``."""


def finished(path: pathlib.Path) -> dict[RunConfig, Record]:
    """Read the finished runs of a file.

    Raises:
      InputError: a line is not the record of a finished run.
    """
    return {_config(path, record): record for record in json_lines.read(path)}


def _config(path: pathlib.Path, record: Record) -> RunConfig:
    try:
        if not (record["history"] and record["summary"]):
            raise InputError("the history or the summary is empty")
        return configs.from_record(record["config"])
    except (AttributeError, KeyError, TypeError, InputError) as error:
        raise InputError(
            f"{path} has a record that is not a finished run ({error}); remove its line."
        ) from error


def add(path: pathlib.Path, config: RunConfig, result: RunResult, **fields: Any) -> Record:
    """Append a finished run; returns its record.

    Args:
      path: the file.
      config: the run's config, without local paths.
      result: the run's result.
      **fields: further fields of the record.
    """
    record = {
        "config": configs.to_record(config),
        "history": result.records,
        "summary": result.summary,
        **fields,
    }
    json_lines.append(path, record)
    return record


def run_once(path: pathlib.Path, config: RunConfig, run: Callable[[], RunResult]) -> Record:
    """Return the stored record of a config, or run it and store its record.

    Raises:
      InputError: the file holds runs of a version that divided the examples otherwise, to which a
        new run cannot be compared.
    """
    stored = finished(path)
    if config in stored:
        return stored[config]
    for other, record in stored.items():
        if former := former_partition(record["summary"], other.federation.partition):
            raise InputError(
                f"{path} has runs of {former}; move it away and run all of them again."
            )
    return add(path, config, run())
