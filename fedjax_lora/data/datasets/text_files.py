"""Text files, plain or compressed (.gz, .xz, .bz2), with bounds on what is read of them."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.untrusted_files import check_regular_file, first_line

LONGEST_LINE = 2**24
"""Characters of the longest line; texts are cut to some hundred tokens anyway."""

MOST_BYTES = 2**32
"""Bytes that are read of a file, unpacked; the environment variable `MAX_BYTES` sets another."""

MOST_ROWS = 10**7
"""Rows that are read of a file; the environment variable `MAX_ROWS` sets another."""

LARGEST_RATIO = 100
"""Bytes that are unpacked from one byte of a compressed file; texts are packed to a twentieth."""

SMALL = 2**22
"""Bytes that may be unpacked from any file."""

MAX_BYTES, MAX_ROWS = "FEDJAX_LORA_MAX_BYTES", "FEDJAX_LORA_MAX_ROWS"

OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


def plain_name(path: Path) -> Path:
    """Remove the ending .gz, .xz or .bz2 from a path, in capitals too."""
    return path.with_suffix("") if path.suffix.lower() in OPENERS else path


@contextlib.contextmanager
def open_binary(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a file, unpacked as it is read, and with a bound on its size.

    Raises:
      InputError: the file is missing, damaged or too large; also raised while it is read.
    """
    check_regular_file(path)
    opener = OPENERS.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as raw:
            yield _Bounded(path, raw)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} cannot be read ({error}); check the file.") from error


@contextlib.contextmanager
def open_text(path: Path, *, encoding: str = "utf-8-sig") -> Iterator[TextIO]:
    """Open plain or compressed text with unchanged line ends, by default UTF-8 with or without BOM.

    Raises:
      InputError: the file is missing, damaged, too large or not of this encoding; also raised while
        it is read.
    """
    with open_binary(path) as raw:
        try:
            yield io.TextIOWrapper(raw, encoding=encoding, newline="")  # pyright: ignore
        except UnicodeError as error:
            name = "UTF-8" if encoding == "utf-8-sig" else encoding
            raise InputError(
                f"{path} is not {name} text ({first_line(error)}); convert it to UTF-8, or give "
                "encoding='...' for a csv or tsv file."
            ) from error


class _Bounded(io.BufferedIOBase):
    """A binary file that refuses to give more bytes than `largest_size`."""

    def __init__(self, path: Path, stream: Any) -> None:
        self._path, self._stream, self._most = path, stream, largest_size(path)
        self._read = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size >= 0:
            return self._count(self._stream.read(size))
        parts = []
        while part := self.read(2**20):
            parts.append(part)
        return b"".join(parts)

    def read1(self, size: int = -1) -> bytes:
        return self._count(self._stream.read1(size))

    def _count(self, data: bytes) -> bytes:
        self._read += len(data)
        check_text_size(self._path, self._read, self._most)
        return data


def largest_size(path: object) -> int:
    """Largest number of bytes that is read of a file, unpacked, or of another source."""
    limit = _limit(MAX_BYTES, MOST_BYTES)
    is_file = isinstance(path, Path)
    if MAX_BYTES in os.environ or not is_file or path.suffix.lower() not in OPENERS:
        return limit
    return min(limit, max(SMALL, LARGEST_RATIO * os.path.getsize(path)))


def check_text_size(where: object, size: int, most: int) -> None:
    """Refuse a source with more text than is read.

    Raises:
      InputError: ``size`` is above ``most``.
    """
    if size > most:
        raise InputError(
            f"{where} holds more than {most} bytes unpacked; if that is right, set {MAX_BYTES} to "
            "the number of bytes that may be read."
        )


def check_rows(path: object, rows: int) -> None:
    """Refuse a source with more rows than are read.

    Raises:
      InputError: it has more than `MOST_ROWS`, or than the environment allows.
    """
    if rows > _limit(MAX_ROWS, MOST_ROWS):
        raise InputError(
            f"{path} has more than {_limit(MAX_ROWS, MOST_ROWS)} rows; if that is right, set "
            f"{MAX_ROWS} to the number of rows that may be read."
        )


def check_size(path: Path) -> None:
    """Refuse a text file that is too large, before anything of it is kept in memory.

    Raises:
      InputError: it has more bytes or lines than are read, or cannot be read.
    """
    rows = 0
    with open_binary(path) as stream:
        while block := stream.read(2**20):
            rows += block.count(b"\n")
            check_rows(path, rows - 1)  # without a header


def _limit(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 30:
        raise InputError(f"{name} is {text!r}; set it to a whole number.")
    return int(text)


def lines(path: Path, stream: TextIO, *, longest: int | None = LONGEST_LINE) -> Iterator[str]:
    """Iterate over lines with a limit on their length, since a compressed file may expand a lot.

    Args:
      path: the file, for the message.
      stream: the file as text.
      longest: characters of the longest line; None for no limit but that of the file.

    Raises:
      InputError: a line of more than `LONGEST_LINE` characters.
    """
    number = 0
    while line := stream.readline(-1 if longest is None else longest + 1):
        number += 1
        if longest is not None and len(line) > longest:
            raise InputError(
                f"{path} line {number} has more than {LONGEST_LINE} characters; check the file."
            )
        yield line


def read_json(path: Path) -> Any:
    """Read one JSON value from a text file, plain or compressed.

    Raises:
      InputError: the file cannot be read or is not JSON.
    """
    check_size(path)
    with open_text(path) as stream:
        try:
            return json.load(stream)
        except (ValueError, RecursionError) as error:
            if isinstance(error, UnicodeError):
                raise
            raise InputError(f"{path} is not JSON ({first_line(error)}); fix it.") from error
