"""Reading files that may come from outside: regular files only, sizes bounded, errors explained."""

import json
import os
import pathlib
from typing import Any

from fedjax_lora.core.errors import InputError

LARGEST_JSON = 64 * 2**20
"""Bytes of the largest JSON file that is read; the largest known vocabularies take half of it."""


def read_json(path: str | pathlib.Path) -> Any:
    """Read the value in a JSON file.

    Raises:
      InputError: the file is missing, too large, not UTF-8 (with or without BOM), not JSON, or
        nested deeper than Python can parse.
    """
    check_regular_file(path)
    try:
        if os.path.getsize(path) > LARGEST_JSON:
            raise InputError(f"{path} has more than {LARGEST_JSON} bytes; is this the right file?")
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({first_line(error)}); check the file.") from error


def check_regular_file(path: str | pathlib.Path) -> None:
    """Refuse anything but a regular file: reading a device or a pipe might never end.

    Raises:
      InputError: the path does not exist or is not a file.
    """
    if not os.path.isfile(path):
        reason = "not a file" if os.path.lexists(path) else "no such file"
        raise InputError(f"{path} cannot be read ({reason}); check the path.")


def first_line(error: BaseException) -> str:
    """First line of another library's error message, to quote inside an `InputError`."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
