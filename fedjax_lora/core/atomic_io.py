"""Files that are there as a whole or not at all, and folders that one process writes to."""

import contextlib
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.untrusted_files import first_line

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
def reporting_write_errors(folder: pathlib.Path) -> Iterator[None]:
    """Turn write errors inside the context into an `InputError` that names the output folder.

    Raises:
      InputError: the disk is full, a permission is missing, or the like.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
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
