"""The folder of a comparison: what it holds, and who may write to it."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.runs.folder_names import refuse_other_files

BASE, RUNS = "base.json", "runs"


def check(folder: pathlib.Path) -> None:
    """Check that a comparison may write to a folder; nothing is written.

    Raises:
      InputError: it is a file, or holds other files than those of a comparison.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Output {folder} is a file; choose a folder with --out.")
    if not (folder / BASE).exists():
        refuse_other_files(folder, "comparison")


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Keep other comparisons from writing to a folder.

    Args:
      folder: the folder, which need not exist.

    Yields:
      A function that makes the folder; before it is called nothing is written.

    Raises:
      InputError: as `check`; the folder cannot be written, or another comparison is writing to it
        (also from the function).
    """
    check(folder)
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            stack.callback(atomic_io.lock(folder).release)

        is_known = (folder / BASE).exists()
        if is_known:
            lock()

        def start() -> None:
            with atomic_io.reporting_write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            if not is_known:
                lock()
                check(folder)
            with atomic_io.reporting_write_errors(folder):
                for place in (folder, folder / RUNS):
                    atomic_io.remove_partial(place)

        yield start
