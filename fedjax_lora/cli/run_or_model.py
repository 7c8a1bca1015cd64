"""Open the model of a run folder or a model folder, and check the options that go with it."""

import contextlib
import pathlib
from collections.abc import Callable

import jax

from fedjax_lora.cli.folders import check_base, is_run, need_model, need_model_folder
from fedjax_lora.core.cache import cache_dir
from fedjax_lora.core.errors import raise_all
from fedjax_lora.interop import TrainedModel, load_model
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.outputs import server_model
from fedjax_lora.runs.resume import read_config, reopen


def open_folder(
    folder: pathlib.Path, *, model: str | None = None, pooling: str | None = None
) -> TrainedModel:
    """Open the model of a run, of an adapter folder or of a checkpoint.

    Args:
      folder: the folder.
      model: the base, in place of the one that the folder names.
      pooling: pooling of the classifier, for an adapter that PEFT wrote.

    Raises:
      InputError: as `fedjax_lora.interop.load_model`; a run that is not finished, or whose base
        would have to be downloaded.
    """
    need_model(folder)
    if is_run(folder):
        return open_run(folder, read_config(folder, model=model), trusted=model is not None)
    return load_model(folder, base=model, pooling=pooling)


def open_run(folder: pathlib.Path, config: RunConfig, *, trusted: bool) -> TrainedModel:
    """Open the model of a finished run, on the base that its config names.

    Args:
      folder: the run folder.
      config: its config, with the base that is used.
      trusted: whether the user has named the base, so that it may be downloaded.

    Raises:
      InputError: as `open_folder`.
    """
    if not trusted:
        check_base(folder, config.model.model)
    return load_model(need_model_folder(folder), base=config.model.model)


def open_best(folder: pathlib.Path, *, model: str | None = None) -> TrainedModel:
    """Open the global model of a run's checkpoint with the best score.

    Args:
      folder: the run folder.
      model: present folder of the base, if it has moved.

    Raises:
      InputError: as `fedjax_lora.runs.resume.reopen`; a base that would have to be downloaded.
    """
    config = read_config(folder, model=model)
    if model is None:
        check_base(folder, config.model.model)
    run, progress, history = reopen(
        folder, config, best=True, cache_dir=str(cache_dir() / "tokens")
    )
    return server_model(run, progress.state, history[-1])


def with_precision(
    folder: pathlib.Path, precision: str | None
) -> contextlib.AbstractContextManager[object]:
    """Return a context in which float32 products have the precision of a command.

    Args:
      folder: that of a run, whose precision is the default, or of a model.
      precision: ``default`` or ``highest``, if the command says so.
    """
    if precision is None and is_run(folder):
        precision = read_config(folder).model.precision
    if precision != "highest":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


def has_adapter(model: TrainedModel) -> bool:
    """Return whether a model is an adapter on a base, not a whole checkpoint."""
    return bool(model.targets)


_USED_BY: tuple[tuple[str, Callable[[TrainedModel], bool], str], ...] = (
    ("prompt_format", lambda model: model.metadata.language, "language models"),
    ("answer_tokens", lambda model: model.metadata.language, "language models"),
    ("pair", lambda model: model.metadata.language or model.metadata.pair, "models of pairs"),
    ("pooling", lambda model: not model.metadata.language, "classifiers"),
    # An adapter of this library names its task, and its metadata hold the pooling.
    (
        "pooling",
        lambda model: has_adapter(model) and not model.metadata.task,
        "adapters that fedjax-lora has not written",
    ),
    ("model", has_adapter, "adapters, which need a base"),
    ("ranks", has_adapter, "adapters, which have components"),
)
"""Options, the models that each is for, and what those are called."""


def check_options(where: pathlib.Path, trained: TrainedModel, **options: object) -> None:
    """Refuse options that would change nothing, because they are for other models.

    Args:
      where: folder of the model.
      trained: the model.
      **options: options by name; None or empty where one is not given.

    Raises:
      InputError: such options; all of them are named, each with the first reason.
    """
    reasons: dict[str, str] = {}
    for name, is_used, models in _USED_BY:
        if options.get(name) not in (None, ()) and not is_used(trained):
            reasons.setdefault(name, models)
    model = "a language model" if trained.metadata.language else "a classifier"
    raise_all(
        f"{where} is {model}{'' if has_adapter(trained) else ' without an adapter'}",
        [
            f"--{name.replace('_', '-')} is only for {models}, leave it out"
            for name, models in reasons.items()
        ],
    )
