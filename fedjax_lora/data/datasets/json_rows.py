"""Readers of JSON: one object per line, an array of objects, or an object of tables or clients."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.untrusted_files import first_line
from fedjax_lora.data.datasets.delimited import Missing, Names, check_header, chosen
from fedjax_lora.data.datasets.json_objects import Record, records_of
from fedjax_lora.data.datasets.text_files import check_rows, check_size, lines, open_text, read_json

REQUIRED = Missing()


class Rows(NamedTuple):
    """Columns of a JSON file.

    Attributes:
      values: the values of each column.
      numbers: the number of each row.
      clients: the natural client of each row, if the file states them.
    """

    values: dict[str, list[object]]
    numbers: Sequence[int]
    clients: list[str] | None


def read_jsonl(path: Path, names: Names, missing: Missing = REQUIRED) -> Rows:
    """Read columns of a file with one JSON object per line, and the number of each row.

    Args:
      path: the file.
      names: the columns.
      missing: columns that objects may lack; their value is then None.

    Raises:
      InputError: no such file or column; a line that is not a JSON object.
    """
    check_size(path)
    return _columns(path, names, _records(path), missing)


def read_json_rows(path: Path, names: Names, missing: Missing = REQUIRED) -> Rows:
    """Read columns of a JSON file: an array of objects, or one object per line.

    `datasets.Dataset.to_json` and pandas write lines into a file that they call .json. The first
    line tells which it is. A single object may also hold columns, or the examples of clients: see
    `fedjax_lora.data.datasets.json_objects`.

    Raises:
      InputError: as `read_jsonl`.
    """
    if _has_lines(path):
        return read_jsonl(path, names, missing)
    content = read_json(path)
    if isinstance(content, dict):
        return _columns(path, names, records_of(path, content, names), missing)
    if not isinstance(content, list):
        raise InputError(f"{path} is not a JSON array; write one object per example into an array.")
    records = (Record(number, value) for number, value in enumerate(content, start=1))
    return _columns(path, names, records, missing)


def _has_lines(path: Path) -> bool:
    """Whether the first line that is not blank is an example by itself."""
    with open_text(path) as stream:
        begin = " "
        while begin.isspace():
            begin = stream.read(1)
        if begin != "{":  # an array, in one line of any length
            return False
        filled = (line for line in lines(path, stream, longest=None) if line.strip())
        try:
            first = json.loads(begin + next(filled, ""))
        except (ValueError, RecursionError):
            return False
        if not isinstance(first, dict):
            return False
        # An only object of lists is a table or a list of clients, in a form of its own.
        is_example = not all(isinstance(value, list | dict) for value in first.values())
        return is_example or next(filled, None) is not None


def _records(path: Path) -> Iterator[Record]:
    with open_text(path) as stream:
        for number, line in enumerate(lines(path, stream), start=1):
            if not line.strip():
                continue
            try:
                yield Record(number, json.loads(line))
            except (ValueError, RecursionError) as error:
                reason = first_line(error)
                raise InputError(f"{path} row {number} is not JSON ({reason}); fix it.") from error


def _columns(path: Path, names: Names, records: Iterable[Record], missing: Missing) -> Rows:
    numbers: list[int] = []
    clients: list[str] = []
    columns: dict[str, list[object]] = {} if callable(names) else {name: [] for name in names}
    lacking = set(missing.absent)
    for number, record, client in records:
        if not isinstance(record, dict):
            raise InputError(f"{path} row {number} is not a JSON object; write one per example.")
        if not columns:
            columns = {name: [] for name in (*chosen(names, list(record)), *missing.optional)}
        check_header(f"{path} row {number}", [*filter(missing.needs, columns)], list(record))
        numbers.append(number)
        clients += [] if client is None else [client]
        check_rows(path, len(numbers))
        lacking -= record.keys()
        for name, column in columns.items():
            column.append(record.get(name))
    _refuse_lacking(path, lacking & columns.keys() if numbers else ())
    return Rows(columns, numbers, clients or None)


def _refuse_lacking(path: Path, lacking: Collection[str]) -> None:
    if lacking:
        raise InputError(f"{path}: no row has a column {min(lacking)!r}; check its name.")
