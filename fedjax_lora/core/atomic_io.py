"""Files that are there as a whole or not at all, and folders that one process writes to."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from fedjax_lora.core.errors import InputError

LOCK = ".lock"

PARTIAL = ".partial"
"""How the names of what is still being written end."""


def lock(folder: pathlib.Path) -> FileLock:
    """Take a folder for this process alone, until the lock is released or the process is gone.

    The system gives up the locks of a process that has ended in whatever way: none is ever stale.

    Raises:
      InputError: another process has the folder, or it cannot be written.
    """
    taken = FileLock(folder / LOCK)
    try:
        taken.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"Another run is writing to {folder}; wait for its end, or choose another folder."
        ) from error
    except OSError as error:
        raise InputError(f"Folder {folder} cannot be written: {error.strerror}.") from error
    return taken


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Tell a user whose folder cannot be written, or no longer, what is wrong.

    Raises:
      InputError: what is done inside the context met a full disk, a missing permission or the like.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or brief(error)
        raise InputError(f"Output folder {folder} cannot be written ({reason}).") from error


def write(path: pathlib.Path, text: str) -> None:
    """Write a text file under another name first, so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power failure could leave the name of an empty file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_folder(path: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> None:
    """Let ``fill`` write a folder under another name; it then takes the place of the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    fill(partial)
    remove_folder(path)
    partial.rename(path)


def remove_folder(path: pathlib.Path) -> None:
    """Remove a folder such that no part of it is ever seen under its name."""
    if path.exists():
        going = path.with_name(f".{path.name}.old{PARTIAL}")
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
        shutil.rmtree(going)


def remove_partial(folder: pathlib.Path) -> None:
    """Remove what processes that were stopped had begun to write in a folder, or to remove."""
    for path in folder.glob(f".*{PARTIAL}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sha256(path: pathlib.Path) -> str:
    """Hex digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
