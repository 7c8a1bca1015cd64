"""Atomic writes of files and folders, and the lock that gives a folder to one process."""

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
"""Suffix of files and folders that are still being written."""


def lock(folder: pathlib.Path) -> FileLock:
    """Lock a folder for this process, until the lock is released or the process ends.

    The operating system releases the locks of a process that ends for any reason, so no lock is
    ever stale.

    Raises:
      InputError: another process holds the lock, or the folder cannot be written.
    """
    file_lock = FileLock(folder / LOCK)
    try:
        file_lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"Another run is writing to {folder}; wait for its end, or choose another folder."
        ) from error
    except OSError as error:
        raise InputError(f"Folder {folder} cannot be written: {error.strerror}.") from error
    return file_lock


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
    """Write a text file under a temporary name and rename it, so that no reader sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power failure could leave an empty file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_folder(path: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> None:
    """Write a folder under a temporary name, then replace the old one.

    Args:
      path: the folder.
      fill: writes the contents into the temporary folder that it receives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    fill(partial)
    remove_folder(path)
    partial.rename(path)


def remove_folder(path: pathlib.Path) -> None:
    """Rename a folder before removing it, so that no reader sees a part of it under its name."""
    if path.exists():
        renamed = path.with_name(f".{path.name}.old{PARTIAL}")
        shutil.rmtree(renamed, ignore_errors=True)
        path.rename(renamed)
        shutil.rmtree(renamed)


def remove_partial(folder: pathlib.Path) -> None:
    """Remove the partial files and folders that interrupted processes left in a folder."""
    for path in folder.glob(f".*{PARTIAL}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sha256(path: pathlib.Path) -> str:
    """Hex SHA-256 digest of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
