"""Names in output folders, which are needed where JAX is not loaded."""

import os
import pathlib

from fedjax_lora.core.errors import InputError, first_names

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
ADAPTER, MERGED = "adapter", "merged"


def visible_files(folder: pathlib.Path) -> list[str]:
    """Names in a folder, sorted; hidden files are locks and what was being written."""
    if not os.path.isdir(folder):
        return []
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def refuse_other_files(folder: pathlib.Path, kind: str) -> None:
    """Refuse an output folder that holds anything.

    Args:
      folder: a folder without the results that belong into it.
      kind: what these are, ``run`` or ``comparison``.

    Raises:
      InputError: the folder is not empty.
    """
    if files := visible_files(folder):
        raise InputError(
            f"Output folder {folder} holds other files ({first_names(files, 3)}) and no {kind}; "
            "choose a new or empty folder with --out."
        )
