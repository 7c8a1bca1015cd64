"""JSON values, as run folders, records and configs hold them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

JsonValue: TypeAlias = str | int | float | bool | Sequence[object] | Mapping[str, object] | None
"""One value of a record."""

Record: TypeAlias = dict[str, Any]
"""A JSON object whose values are read by name: a line of ``metrics.jsonl``, a summary, a config.

Which names it has, and whether a value is a number, a list or an object, depends on the task and
the method, so the values are not typed. Functions that only hand a record on take a
``Mapping[str, object]``.
"""

History: TypeAlias = Sequence[Record]
"""The records of the rounds of a run, in order."""


def as_lines(records: Iterable[object]) -> str:
    """Format records as the lines of a JSON-lines file."""
    return "".join(json.dumps(record) + "\n" for record in records)
