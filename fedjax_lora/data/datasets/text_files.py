"""Text files, plain or compressed (.gz, .xz)."""

import contextlib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.untrusted_files import check_regular_file, first_line

LONGEST_LINE = 2**24
"""Characters of the longest line; texts are cut to some hundred tokens anyway."""

OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def plain_name(path: Path) -> Path:
    """Remove the ending .gz or .xz from a path."""
    return path.with_suffix("") if path.suffix in OPENERS else path


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open plain, .gz or .xz text as UTF-8, with or without BOM, with unchanged line ends.

    Raises:
      InputError: the file is missing, damaged or not UTF-8; also raised while it is read.
    """
    check_regular_file(path)
    opener = OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rb") as raw:
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")  # pyright: ignore
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); convert it to UTF-8.") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be read ({error}); check the file.") from error


def lines(path: Path, stream: TextIO) -> Iterator[str]:
    """Iterate over lines with a limit on their length, since a compressed file may expand a lot.

    Raises:
      InputError: a line of more than `LONGEST_LINE` characters.
    """
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise InputError(
                f"{path} line {number} has more than {LONGEST_LINE} characters; check the file."
            )
        yield line


def read_json(path: Path) -> Any:
    """Read one JSON value from a text file (.gz and .xz too).

    Raises:
      InputError: the file cannot be read or is not JSON.
    """
    with open_text(path) as stream:
        try:
            return json.load(stream)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON ({first_line(error)}); fix it.") from error
