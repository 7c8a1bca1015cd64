"""Result files in JSON lines: one record per line, appended when it is complete."""

import fcntl
import json
import os
import pathlib
from typing import Any

from fedjax_lora import InputError

Record = dict[str, Any]


def read(path: pathlib.Path) -> list[Record]:
    """Read all complete records, in file order.

    A last line without a newline was cut off when its writer was killed and is ignored.

    Returns:
      The records; an empty list if the file does not exist.

    Raises:
      InputError: a complete line is not a JSON object.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [_parse(path, number, line) for number, line in enumerate(lines, 1)]


def _parse(path: pathlib.Path, number: int, line: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise InputError(f"Line {number} of {path} is not a JSON object; remove the line.")
    return record


def by_name(path: pathlib.Path) -> dict[str, Record]:
    """Read all complete records by their field ``name``."""
    return {record["name"]: record for record in read(path)}


def append(path: pathlib.Path, record: Record) -> None:
    """Append a record; the file is created if it does not exist.

    The file is locked meanwhile, so that several processes can write to it, and an incomplete last
    line is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _remove_incomplete_line(file)
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _remove_incomplete_line(file: Any) -> None:
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
