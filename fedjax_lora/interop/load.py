"""Loading a folder as a `TrainedModel`: a PEFT adapter or a plain checkpoint."""

import dataclasses
import pathlib
from typing import Any

import jax

from fedjax_lora import models
from fedjax_lora.core.backend import check_backend
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.hub_ids import former_id
from fedjax_lora.core.registry import fits
from fedjax_lora.interop import metadata, peft_config
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.interop.peft import (
    assemble,
    check_task,
    load_adapter,
    read_num_labels,
    without_head,
)
from fedjax_lora.interop.peft_writer import CONFIG
from fedjax_lora.interop.trained_model import TrainedModel
from fedjax_lora.models.decoder_config import DECODERS
from fedjax_lora.models.huggingface.config import MOST_LABELS

__all__ = ["load_model"]


def load_model(
    folder: str | pathlib.Path, *, base: str | None = None, pooling: str | None = None
) -> TrainedModel:
    """Load a PEFT adapter with its base model, or a plain checkpoint.

    The folder may come from an untrusted source: the base that it names is loaded only if it is
    one of `fedjax_lora.models.MODELS`. Any other base has to be given as `base`.

    Example::

      model = fl.interop.load_model("runs/demo/adapter")
      model.metadata.classes

    Args:
      folder: an adapter written by this library or by PEFT, or a classifier or language model
        saved by `transformers`.
      base: base model of an adapter, in place of the one that the folder names.
      pooling: ``"family"`` or ``"mean"``, for an adapter without metadata of this library.

    Returns:
      The model. Without ``fedjax_lora.json`` in the folder, its metadata are inferred.

    Raises:
      InputError: the folder holds no model or damaged files, the adapter of a classifier has no
        head, or the adapter does not fit the base.
    """
    check_backend()
    path = pathlib.Path(folder)
    if (path / CONFIG).is_file():
        return _load_adapter_folder(path, base, pooling)
    if (path / "config.json").is_file():
        return _load_checkpoint(path)
    raise InputError(f"{folder} holds no model: no {CONFIG} and no config.json.")


def _load_adapter_folder(path: pathlib.Path, base: str | None, pooling: str | None) -> TrainedModel:
    stored = metadata.read(path)
    if stored is None:
        return _load_peft_adapter(path, base, pooling or "family")
    num_labels = read_num_labels(path)
    check_task(path, language=stored.language)
    if num_labels is None and not stored.language:
        raise without_head(path)
    pretrained = models.load(
        base or _known_base(stored.base, path),
        num_labels=None if stored.language else num_labels,
        layers=stored.layers,
        storage=stored.storage,
        pooling=stored.pooling,
        dropout=0.0,
        key=jax.random.key(0),
    )
    model = assemble(pretrained, load_adapter(path, pretrained), stored)
    _check_metadata(path, model, base or stored.base, num_labels)
    return model


def _load_peft_adapter(path: pathlib.Path, base: str | None, pooling: str) -> TrainedModel:
    """Load an adapter without metadata of this library."""
    config = peft_config.read_config(path)
    name = base or _known_base(str(config.get("base_model_name_or_path") or ""), path)
    language, num_labels, classes = _outputs(path, config, name)
    pretrained = models.load(
        name, num_labels=num_labels, pooling=pooling, dropout=0.0, key=jax.random.key(0)
    )
    loaded = load_adapter(path, pretrained)
    if loaded.num_labels is None and any(p.startswith("head/") for p in pretrained.new_params):
        raise without_head(path)
    inferred = metadata.infer(pretrained, name, classes=classes, language=language)
    model = assemble(pretrained, loaded, inferred)
    # The folder may hold a pooler of its own, which is part of the fingerprint.
    described = dataclasses.replace(inferred, base_sha256=model.pretrained.fingerprint)
    return dataclasses.replace(model, metadata=described)


def _outputs(
    path: pathlib.Path, config: dict[str, Any], base: str
) -> tuple[bool, int | None, tuple[str, ...]]:
    """Find what an adapter of PEFT computes on its base.

    Args:
      path: the adapter folder.
      config: its config.
      base: name of the base.

    Returns:
      Whether it is a language model, or else its number of outputs, and the names of its classes.

    Raises:
      InputError: the adapter is of another task, or neither it nor its base has a head.
    """
    task, num_labels = peft_config.task_of(config), read_num_labels(path)
    check_task(path, language=task == "CAUSAL_LM")
    if num_labels is not None:
        folder = models.resolve(base, weights=False).folder
        _check_problem_type(models.read_raw(folder), folder / "config.json", num_labels)
        return False, num_labels, _numbered_classes(num_labels)
    if task == "CAUSAL_LM":
        return True, None, ()
    if config.get("modules_to_save") or task not in (None, "SEQ_CLS"):
        raise without_head(path)
    # PEFT puts an adapter that brings no head on the base as it is.
    folder = models.resolve(base, weights=False).folder
    raw = models.read_raw(folder)
    if _has_class(raw, "ForSequenceClassification"):
        names = _label_names(raw, folder / "config.json")
        _check_problem_type(raw, folder / "config.json", len(names))
        return False, len(names), names if len(names) > 1 else ()
    if task is None and raw.get("model_type") in DECODERS:
        return True, None, ()
    raise without_head(path)


def _check_metadata(
    path: pathlib.Path, model: TrainedModel, base: str, num_labels: int | None
) -> None:
    described = model.metadata
    if model.pretrained.fingerprint != described.base_sha256:
        raise InputError(
            f"The adapter in {path} was trained on another model than {base!r}; give the right "
            "one with --model."
        )
    if not described.language and len(described.classes or (0,)) != num_labels:
        raise InputError(
            f"{path / metadata.FILE} names {len(described.classes)} classes, but the head has "
            f"{num_labels}."
        )


def _load_checkpoint(path: pathlib.Path) -> TrainedModel:
    stored, config = metadata.read(path), models.read_raw(path)
    if stored.language if stored else _has_class(config, "ForCausalLM"):
        pretrained = models.load(str(path), num_labels=None, dropout=0.0, key=jax.random.key(0))
        return _plain(pretrained, stored or metadata.infer(pretrained, str(path), language=True))
    names = _label_names(config, path / "config.json")
    if stored is not None and stored.pooling != "family":
        raise InputError(
            f"{path} is a mean-pooled encoder with its head in a separate file; its README.md "
            "has the lines that use it, and its run's adapter folder can be used here."
        )
    _check_problem_type(config, path / "config.json", len(names))
    pretrained = models.load(str(path), num_labels=len(names), dropout=0.0, key=jax.random.key(0))
    if any(name.startswith("head/") for name in pretrained.new_params):
        raise InputError(f"{path} is no classifier: its weights have no head for its labels.")
    classes = names if len(names) > 1 else ()
    return _plain(pretrained, stored or metadata.infer(pretrained, str(path), classes=classes))


def _plain(pretrained: models.Pretrained, described: ModelMetadata) -> TrainedModel:
    """A model without an adapter."""
    return TrainedModel(
        pretrained=pretrained,
        metadata=described,
        targets=(),
        adapter={},
        gain={},
        head=pretrained.params["head"],
    )


def _has_class(config: dict[str, Any], end: str) -> bool:
    """Whether ``config.json`` names a class of this kind."""
    classes = config.get("architectures")
    return isinstance(classes, list) and any(str(name).endswith(end) for name in classes[:1])


def _check_problem_type(config: dict[str, Any], file: pathlib.Path, num_labels: int) -> None:
    """Refuse outputs that are neither one class of several nor one score.

    Raises:
      InputError: each output has a probability of its own, or there are several scores.
    """
    kind = config.get("problem_type")
    if kind == "multi_label_classification":
        raise InputError(
            f"{file} says that problem_type is {kind!r}, a label of its own for each output, and "
            "only one class for each text can be computed here; use transformers for this model."
        )
    if kind == "regression" and num_labels > 1:
        raise InputError(
            f"{file} says that problem_type is {kind!r} with {num_labels} outputs, and only one "
            "score for each text can be computed here; use transformers for this model."
        )


def _label_names(config: dict[str, Any], file: pathlib.Path) -> tuple[str, ...]:
    """The names of a checkpoint's outputs; numbers where ``id2label`` has none.

    Raises:
      InputError: ``num_labels`` is not a number of labels, or two outputs have the same name.
    """
    names = config.get("id2label")
    if isinstance(names, dict) and names:
        classes = tuple(str(names.get(str(n), n)) for n in range(len(names)))
        twice = sorted({name for name in classes if classes.count(name) > 1})
        raise_all(f"{file} gives several outputs the same name; change id2label", twice)
        return classes
    count = config.get("num_labels", 2)
    if not fits(count, int) or not 1 <= count <= MOST_LABELS:
        raise InputError(
            f"{file} says that num_labels is {count!r}, but it must be a whole number from 1 to "
            f"{MOST_LABELS}; correct it."
        )
    return tuple(map(str, range(count)))


def _numbered_classes(num_labels: int) -> tuple[str, ...]:
    """Class names of a classifier without names; empty for a regression or language model."""
    return tuple(map(str, range(num_labels))) if num_labels > 1 else ()


def _known_base(name: str, path: pathlib.Path) -> str:
    """The alias of a known base, given by alias or hub id.

    Raises:
      InputError: no known base has this name.
    """
    for alias, model in models.MODELS.items():
        if name in (alias, model.hub, former_id(model.hub)):
            return alias
    raise InputError(
        f"The adapter in {path} says that its base is {name!r}, which is none of the models known "
        "by name; if you trust it, give it with --model."
    )
