"""Atomic writes of files and folders, and the lock that gives a folder to one process."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import stat
import threading
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
    except Exception as error:
        # Libraries in Rust raise errors of the system as an Exception with its number.
        of_system = isinstance(error, OSError | SafetensorError) or "(os error " in str(error)
        if not of_system:
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"Output folder {folder} cannot be written ({reason}).") from error


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file under a temporary name and rename it, so that no reader sees half of it.

    A symbolic link is followed and stays. What is no regular file (a pipe, ``/dev/null``) is
    written to. A file that is replaced keeps its permissions.

    Args:
      path: the file.
      content: bytes, or text to be written as UTF-8.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    path = pathlib.Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Threads of one process may write the same file.
    name = f".{path.name}"[:200] + f".{os.getpid()}.{threading.get_ident()}{PARTIAL}"
    partial = path.with_name(name)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power failure could leave an empty file
        if path.exists():
            partial.chmod(stat.S_IMODE(path.stat().st_mode))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_folder(path: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> None:
    """Write a folder under a temporary name, then replace the old one.

    A symbolic link is followed and stays. All files and folders get the permissions that new ones
    have (the umask), also where a library writes through private temporary files.

    Args:
      path: the folder.
      fill: writes the contents into the temporary folder that it receives.
    """
    path = pathlib.Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        fill(partial)
        _share(partial)
        remove_folder(path)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _share(folder: pathlib.Path) -> None:
    """Give all that is in a new folder the permissions of the folder, files without execution."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)


def remove_folder(path: pathlib.Path) -> None:
    """Rename a folder before removing it, so that no reader sees a part of it under its name.

    Of a symbolic link to a folder, what is in the folder is removed, and the link stays.
    """
    if path.is_symlink() and path.is_dir():
        for inner in path.iterdir():
            is_folder = inner.is_dir() and not inner.is_symlink()
            shutil.rmtree(inner) if is_folder else inner.unlink()
    elif path.exists():
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
