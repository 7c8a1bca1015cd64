"""Readers of JSON: one object per line, or an array of objects."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.untrusted_files import first_line
from fedjax_lora.data.datasets.delimited import check_header
from fedjax_lora.data.datasets.text_files import check_rows, check_size, lines, open_text, read_json

Rows = tuple[dict[str, list[Any]], Sequence[int]]


def read_jsonl(path: Path, names: Sequence[str], absent: Collection[str] = ()) -> Rows:
    """Read columns of a file with one JSON object per line, and the number of each row.

    Args:
      path: the file.
      names: the columns.
      absent: columns that objects may lack; their value is then None.

    Raises:
      InputError: no such file or column; a line that is not a JSON object.
    """
    check_size(path)
    return _columns(path, names, _records(path), absent)


def read_json_rows(path: Path, names: Sequence[str], absent: Collection[str] = ()) -> Rows:
    """Read columns of a JSON file: an array of objects, or one object per line.

    `datasets.Dataset.to_json` and pandas write lines into a file that they call .json. The first
    line tells which it is.

    Raises:
      InputError: as `read_jsonl`.
    """
    if _has_lines(path):
        return read_jsonl(path, names, absent)
    records = read_json(path)
    if not isinstance(records, list):
        raise InputError(f"{path} is not a JSON array; write one object per example into an array.")
    return _columns(path, names, enumerate(records, start=1), absent)


def _has_lines(path: Path) -> bool:
    """Whether the first line that is not blank is an example by itself."""
    with open_text(path) as stream:
        begin = " "
        while begin.isspace():
            begin = stream.read(1)
        if begin != "{":  # an array, in one line of any length
            return False
        filled = (line for line in lines(path, stream) if line.strip())
        try:
            first = json.loads(begin + next(filled, ""))
        except (ValueError, RecursionError):
            return False
        if not isinstance(first, dict):
            return False
        # An only object of lists is a table or a list of clients, in a form of its own.
        is_example = not all(isinstance(value, list | dict) for value in first.values())
        return is_example or next(filled, None) is not None


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    with open_text(path) as stream:
        for number, line in enumerate(lines(path, stream), start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = first_line(error)
                raise InputError(f"{path} row {number} is not JSON ({reason}); fix it.") from error


def _columns(
    path: Path, names: Sequence[str], records: Iterable[tuple[int, Any]], absent: Collection[str]
) -> Rows:
    numbers: list[int] = []
    columns: dict[str, list[Any]] = {name: [] for name in names}
    lacking = set(absent)
    for number, record in records:
        if not isinstance(record, dict):
            raise InputError(f"{path} row {number} is not a JSON object; write one per example.")
        required = [name for name in names if name not in absent]
        check_header(f"{path} row {number}", required, list(record))
        numbers.append(number)
        check_rows(path, len(numbers))
        lacking -= record.keys()
        for name, column in columns.items():
            column.append(record.get(name))
    if numbers and lacking:
        raise InputError(f"{path}: no row has a column {min(lacking)!r}; check its name.")
    return columns, numbers
