"""What a tracker is: it is told about a run, and then takes the record of each round."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fedjax_lora.core import atomic_io
from fedjax_lora.core.json_values import Record

Log = Callable[[Record], None]
"""Takes the record of a round, as ``on_round`` of a run does."""

Tracker = Callable[["TrackedRun"], contextlib.AbstractContextManager[Log]]
"""Starts to track a run, and ends when the run does."""

IDS = "tracking.json"
"""File in a run folder with the trackers' own ids of the run, for when it is resumed."""


class TrackedRun(NamedTuple):
    """What a tracker is told about a run.

    Attributes:
      name: name of the run, that of its folder.
      config: all options as ``group/name``.
      folder: the run folder.
      resumed: whether rounds have been tracked before.
    """

    name: str
    config: Mapping[str, object]
    folder: pathlib.Path
    resumed: bool

    def id(self, tracker: str) -> str | None:
        """Return the id that a tracker gave the run when it began; None for a new run."""
        return _read_ids(self.folder).get(tracker) if self.resumed else None

    def keep_id(self, tracker: str, id: str) -> None:
        """Keep the id that a tracker gave the run."""
        ids = _read_ids(self.folder) | {tracker: id}
        atomic_io.write(self.folder / IDS, json.dumps(ids, indent=2) + "\n")


def _read_ids(folder: pathlib.Path) -> dict[str, str]:
    try:
        ids = json.loads((folder / IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}


def numbers(record: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers of a round by name, those of groups as ``group/name``."""
    return {
        name: value
        for name, value in flat(record).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "round"
    }


def flat(values: Mapping[str, object]) -> dict[str, object]:
    """Return nested values by name, those of groups as ``group/name``."""
    from fedjax_lora.core import trees  # here: it imports JAX, and trackers are checked before

    return trees.flat(values)
