"""What a folder on the command line is, and the model in it."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.interop import TrainedModel, load_model
from fedjax_lora.runs.outputs import ADAPTER, MERGED
from fedjax_lora.runs.resume import read_config


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
) -> TrainedModel:
    """The model of a run, an adapter folder or a checkpoint.

    Args:
      folder: any of them.
      model: the base, in place of the one that the folder names.
      pooling: for an adapter that PEFT wrote.

    Raises:
      InputError: as `fedjax_lora.interop.load_model`; a run that is not finished.
    """
    if not is_run(folder):
        return load_model(folder, base=model, pooling=pooling)
    found = left_in(folder)
    if found is None:
        raise InputError(f"Run {folder} is not finished and has left no model yet.")
    # The user's own run: its config says which base, also where that is a folder.
    return load_model(found, base=model or read_config(folder).model.model)


def has_adapter(model: TrainedModel) -> bool:
    """Whether a model is an adapter on a base, and no checkpoint that holds all of it."""
    return bool(model.targets)


_USE: tuple[tuple[str, Callable[[TrainedModel], bool], str], ...] = (
    ("prompt_format", lambda model: model.metadata.language, "language models"),
    ("answer_tokens", lambda model: model.metadata.language, "language models"),
    ("pair", lambda model: model.metadata.language or model.metadata.pair, "models of pairs"),
    ("pooling", lambda model: not model.metadata.language, "classifiers"),
    # What this library has made names its task, and says itself what its classifier reads.
    (
        "pooling",
        lambda model: has_adapter(model) and not model.metadata.task,
        "adapters that fedjax-lora has not made",
    ),
    ("model", has_adapter, "adapters, which need a base"),
    ("ranks", has_adapter, "adapters, which have components"),
)
"""Options, for which models they are, and what these are called."""


def check_options(where: pathlib.Path, trained: TrainedModel, **given: Any) -> None:
    """Refuse options that would change nothing, because they are for other models.

    Args:
      where: the model's folder.
      trained: the model.
      given: options by name; None or empty where one is not given.

    Raises:
      InputError: such options; all of them are named, each with the first reason.
    """
    reasons: dict[str, str] = {}
    for name, good, models in _USE:
        if given.get(name) not in (None, ()) and not good(trained):
            reasons.setdefault(name, models)
    what = "a language model" if trained.metadata.language else "a classifier"
    raise_all(
        f"{where} is {what}{'' if has_adapter(trained) else ' without an adapter'}",
        [
            f"--{name.replace('_', '-')} is only for {models}, leave it out"
            for name, models in reasons.items()
        ],
    )
