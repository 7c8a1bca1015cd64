"""A folder with a model as something to use: an adapter, or a plain checkpoint."""

import pathlib
from typing import Any, NamedTuple

import jax

from fedjax_lora import models
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.registry import fits
from fedjax_lora.interop import metadata, peft_reader
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.interop.peft import labels_of, load_adapter, put_together
from fedjax_lora.interop.peft_writer import CONFIG
from fedjax_lora.interop.trained_model import TrainedModel
from fedjax_lora.models.huggingface.config import MOST_LABELS

_LONGEST = 512  # tokens, where a folder does not say what its model was trained with


class Opened(NamedTuple):
    """A model to use, and what its folder says of it."""

    fitted: TrainedModel
    about: ModelMetadata


def open_model(
    folder: str | pathlib.Path, *, base: str | None = None, pooling: str | None = None
) -> Opened:
    """Load the model in a folder: a PEFT adapter on its base, or a plain checkpoint.

    Nothing that a stranger's folder names is loaded: its base must be one that is known by name,
    or be given.

    Args:
      folder: written by this library or by PEFT; or a classifier or language model saved by
        `transformers`.
      base: the adapter's base, in place of the one that the folder names.
      pooling: for an adapter that was not written by this library.

    Raises:
      InputError: the folder holds neither, damaged files, a classifier's adapter without a head,
        or one that does not belong to the base.
    """
    path = pathlib.Path(folder)
    if (path / CONFIG).is_file():
        return _open_adapter(path, base, pooling)
    if (path / "config.json").is_file():
        return _open_checkpoint(path)
    raise InputError(f"{folder} holds no model: no {CONFIG} and no config.json.")


def _open_adapter(path: pathlib.Path, base: str | None, pooling: str | None) -> Opened:
    told, labels, said = metadata.read(path), labels_of(path), peft_reader.read_config(path)
    named = str(said.get("base_model_name_or_path") or "") if told is None else told.base
    told = told or ModelMetadata(
        base="",
        base_sha256="",
        classes=_numbered(labels or 1),
        language=labels is None and said.get("task_type") == "CAUSAL_LM",
        pooling=pooling or "family",
    )
    if labels is None and not told.language:
        raise InputError(f"The adapter in {path} has no head: it can be trained, but not used.")
    model = models.load(
        base or _known(named, path),
        num_labels=None if told.language else labels,
        layers=told.layers,
        storage=told.storage,
        pooling=told.pooling,
        dropout=0.0,
        key=jax.random.key(0),
    )
    fitted = put_together(load_adapter(path, model), model)
    if told.base_sha256 and fitted.model.fingerprint != told.base_sha256:
        raise InputError(
            f"The adapter in {path} was trained on another model than {base or named!r}; give the "
            "right one with --model."
        )
    if not told.language and len(told.classes or (0,)) != labels:
        raise InputError(
            f"{path / metadata.FILE} names {len(told.classes)} classes, but the head has {labels}."
        )
    return Opened(fitted, told if told.base_sha256 else _of_stranger(told, base or named, model))


def _open_checkpoint(path: pathlib.Path) -> Opened:
    told, raw = metadata.read(path), models.read_raw(path)
    if told.language if told else _writes(raw):
        model = models.load(str(path), num_labels=None, dropout=0.0, key=jax.random.key(0))
        told = told or _of_stranger(
            ModelMetadata(base="", base_sha256="", language=True), str(path), model
        )
        return Opened(TrainedModel(model, (), {}, {}, model.params["head"]), told)
    names = _labels(raw, path / "config.json")
    if told is not None and told.pooling != "family":
        raise InputError(
            f"{path} is a mean-pooled encoder with its head in a file of its own; its README.md "
            "has the lines that use it, and its run's adapter folder can be used here."
        )
    model = models.load(str(path), num_labels=len(names), dropout=0.0, key=jax.random.key(0))
    if any(name.startswith("head/") for name in model.new_params):
        raise InputError(f"{path} is no classifier: its weights have no head for its labels.")
    classes = told.classes if told else (names if len(names) > 1 else ())
    fitted = TrainedModel(model, (), {}, {}, model.params["head"])
    told = told or _of_stranger(
        ModelMetadata(base="", base_sha256="", classes=classes), str(path), model
    )
    return Opened(fitted, told)


def _writes(config: dict[str, Any]) -> bool:
    """Whether a checkpoint was saved from a language model."""
    named = config.get("architectures")
    return isinstance(named, list) and any(str(name).endswith("ForCausalLM") for name in named[:1])


def _labels(config: dict[str, Any], file: pathlib.Path) -> tuple[str, ...]:
    """The names of a checkpoint's outputs; those of `transformers` where it names none.

    Raises:
      InputError: a number of labels that is none, or too large to be one.
    """
    named = config.get("id2label")
    if isinstance(named, dict) and named:
        return tuple(str(named.get(str(n), n)) for n in range(len(named)))
    count = config.get("num_labels", 2)
    if not fits(count, int) or not 1 <= count <= MOST_LABELS:
        raise InputError(
            f"{file} says that num_labels is {count!r}, but it must be a whole number from 1 to "
            f"{MOST_LABELS}; correct it."
        )
    return tuple(map(str, range(count)))


def _numbered(labels: int) -> tuple[str, ...]:
    return tuple(map(str, range(labels))) if labels > 1 else ()


def _of_stranger(told: ModelMetadata, base: str, model: models.Pretrained) -> ModelMetadata:
    """What can be known of a folder that says nothing."""
    longest = min(_LONGEST, model.config.max_tokens)
    return ModelMetadata(
        base=base,
        base_sha256=model.fingerprint,
        pooling=told.pooling,
        classes=told.classes,
        language=told.language,
        max_length=longest,
    )


def _known(named: str, path: pathlib.Path) -> str:
    """The alias of a base by alias or hub id."""
    for alias, model in models.MODELS.items():
        if named in (alias, model.hub):
            return alias
    raise InputError(
        f"The adapter in {path} says that its base is {named!r}, which is none of the models known "
        "by name; if you trust it, give it with --model."
    )
