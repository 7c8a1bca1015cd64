"""Files that come from outside: looked at before they are read, and errors in one sentence."""

import json
import os
import pathlib
from typing import Any

from fedjax_lora.core.errors import InputError

LARGEST_JSON = 64 * 2**20
"""Bytes; the largest vocabularies in JSON take half of it."""


def need_file(path: str | pathlib.Path) -> None:
    """Refuse what is not a regular file: a device or a pipe could be read for ever.

    Raises:
      InputError: no such file, or something else than a file.
    """
    if not os.path.isfile(path):
        what = "not a file" if os.path.lexists(path) else "no such file"
        raise InputError(f"{path} cannot be read ({what}); check the path.")


def read_json(path: str | pathlib.Path) -> Any:
    """The value in a JSON file.

    Raises:
      InputError: no file, too large a one, not UTF-8 (with or without BOM), not JSON, or nested
        deeper than can be read.
    """
    need_file(path)
    try:
        if os.path.getsize(path) > LARGEST_JSON:
            raise InputError(f"{path} has more than {LARGEST_JSON} bytes; is this the right file?")
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({brief(error)}); check the file.") from error


def brief(error: BaseException) -> str:
    """The first line of an error of a library, for a sentence of ours."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
