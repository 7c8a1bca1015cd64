"""Cases of malformed input."""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from experiments.robustness.malformed_input import valid

FileChange = bytes | None | Callable[[pathlib.Path], None]
"""New contents of a file, None to remove it, or a function that writes something to its path."""


class Case(NamedTuple):
    """A run with one defect.

    Attributes:
      family: kind of input.
      name: description of the defect.
      files: changes of the files of the valid run, by path.
      words: further arguments of the command line.
      says: pattern that the sentence has to match: where the defect is, and what it is. A refusal
        for another reason is a wrong one. From `expected.says`.
    """

    family: str
    name: str
    files: Mapping[str, FileChange] = {}
    words: tuple[str, ...] = ()
    says: str = ""


def write_case(case: Case, root: pathlib.Path) -> list[str]:
    """Write the files of a case; returns the arguments of the command line."""
    valid.write(root)
    (root / "config.json").write_bytes(valid.as_json(valid.settings(root)))
    for name, change in case.files.items():
        (root / name).unlink(missing_ok=True)
        if callable(change):
            change(root / name)
        elif change is not None:
            (root / name).write_bytes(change)
    return ["run", f"--config={root / 'config.json'}", *case.words]


def folder(path: pathlib.Path) -> None:
    """Create a folder instead of a file."""
    path.mkdir()


def pipe(path: pathlib.Path) -> None:
    """Create a pipe without a writer, on which reading would block."""
    os.mkfifo(path)


def loop(path: pathlib.Path) -> None:
    """Create a link to itself."""
    path.symlink_to(path.name)


def endless(path: pathlib.Path) -> None:
    """Link to a device without end."""
    path.symlink_to("/dev/zero")


NOT_A_FILE: dict[str, FileChange] = {
    "no file": None,
    "a folder": folder,
    "a pipe": pipe,
    "a link to itself": loop,
    "an endless device": endless,
}
"""What can be at the path of a file instead of one."""

UNSUPPORTED: dict[str, bytes] = {
    "empty": b"",
    "a byte order mark only": b"\xef\xbb\xbf",
    "zeros": bytes(4096),
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8,
    "a zip archive": b"PK\x03\x04" + bytes(range(256)) * 8,
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07garbage\x94.",
    "a web page": b"<!DOCTYPE html><html><body>404: Not Found</body></html>\n",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "latin-1": '{"text": "caf\xe9"}'.encode("latin-1"),
    "utf-16": '{"text": "a"}\n'.encode("utf-16"),
}
"""Files of unsupported formats."""

NESTED = b"[" * 200_000
LONG_NUMBER = b"9" * 5_000
LONG_NAME = "n" * 5_000
