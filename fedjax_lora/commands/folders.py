"""What a folder on the command line is, and the model in it."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fedjax_lora.errors import InputError, raise_all
from fedjax_lora.exchange import Opened, open_model
from fedjax_lora.handover import ADAPTER, MERGED
from fedjax_lora.reopening import read_config


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder holds a run of this library.

    Raises:
      InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"Folder {folder} does not exist.")
    try:
        return "federation" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def need_run(folder: pathlib.Path) -> None:
    """Refuse a folder that is no run.

    Raises:
      InputError: it is none.
    """
    if not is_run(folder):
        raise InputError(f"{folder} holds no run: it has no config.json of one.")


def left_in(run: pathlib.Path) -> pathlib.Path | None:
    """Where a finished run has left its global model; None if it is not finished."""
    there = [run / name for name in (ADAPTER, MERGED) if (run / name).is_dir()]
    return there[0] if there else None


def open_folder(
    folder: pathlib.Path, *, model: str | None = None, pooling: str | None = None
) -> Opened:
    """The model of a run, an adapter folder or a checkpoint.

    Args:
      folder: any of them.
      model: the base, in place of the one that the folder names.
      pooling: for an adapter that PEFT wrote.

    Raises:
      InputError: as `fedjax_lora.exchange.open_model`; a run that is not finished.
    """
    if not is_run(folder):
        return open_model(folder, base=model, pooling=pooling)
    found = left_in(folder)
    if found is None:
        raise InputError(f"Run {folder} is not finished and has left no model yet.")
    # The user's own run: its config says which base, also where that is a folder.
    return open_model(found, base=model or read_config(folder).model.model)


def check_options(
    where: pathlib.Path,
    opened: Opened,
    *,
    classifier: Mapping[str, Any] | None = None,
    language: Mapping[str, Any] | None = None,
) -> None:
    """Refuse options that are of the other kind of model.

    Args:
      where: the model's folder.
      opened: the model.
      classifier: options of classifiers by name; None where one is not given.
      language: options of language models, likewise.

    Raises:
      InputError: such options; all of them are named.
    """
    is_language = opened.about.language
    wrong, own = (classifier, "classifiers") if is_language else (language, "language models")
    what = "a language model" if is_language else "a classifier"
    given = [name for name, value in (wrong or {}).items() if value is not None]
    raise_all(
        f"{where} is {what}",
        [f"--{name.replace('_', '-')} is only for {own}, leave it out" for name in given],
    )
