"""Paths that Orbax and TensorStore read as they are written."""

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from fedjax_lora.core.errors import InputError

_PLAIN = re.compile(r"[\w./ ~+=,@-]*", re.ASCII)
_DESCRIPTORS = "/proc/self/fd"
"""Folder of the open files of this process, on Linux."""


@contextlib.contextmanager
def plain_path(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    r"""Yield a path of a folder that holds no characters with a meaning for Orbax.

    Orbax looks for its own files with a glob of the whole path, so that below ``lr=[0.01]`` it
    writes what cannot be read, and below ``a*b`` it may find the files of ``axb``; TensorStore
    turns ``\`` into ``/``. A folder with such characters is named by the number of its open
    descriptor or, where there is no ``/proc``, by a temporary symbolic link.

    Args:
      folder: an existing folder.

    Raises:
      InputError: the temporary folder of this machine has such characters itself.
    """
    absolute = folder.absolute()
    if _PLAIN.fullmatch(str(absolute)):
        yield absolute
    elif os.path.isdir(_DESCRIPTORS):
        descriptor = os.open(absolute, os.O_RDONLY)
        try:
            yield pathlib.Path(_DESCRIPTORS, str(descriptor))
        finally:
            os.close(descriptor)
    else:
        with tempfile.TemporaryDirectory(prefix="fedjax-lora-") as name:
            if not _PLAIN.fullmatch(name):
                raise InputError(
                    f"Neither {absolute} nor the temporary folder {name} is a path of letters, "
                    "digits and . / _ ~ + = , @ - that checkpoints can be written to; set TMPDIR "
                    "to such a folder."
                )
            link = pathlib.Path(name, "folder")
            link.symlink_to(absolute, target_is_directory=True)
            yield link
