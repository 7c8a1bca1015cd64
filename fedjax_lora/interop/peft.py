"""A fitted model as a PEFT checkpoint of its base, and back."""

import pathlib
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from fedjax_lora import models
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.interop import matrices, model_card, peft_reader, peft_writer, torch_names
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.interop.trained_model import TrainedModel

Folder = str | pathlib.Path

_OUTPUTS = ("classifier.out_proj.bias", "classifier.bias", "score.weight")
"""Parameters with a number or a row for each output of a head."""


def save_adapter(folder: Folder, fitted: TrainedModel, about: ModelMetadata) -> None:
    """Write the adapter and the head for ``peft.PeftModel.from_pretrained``.

    A pooler that the base's checkpoint lacks is written too, or PEFT would draw another one. What
    a method has added to the base becomes part of the adapter.

    With mean pooling, for which `transformers` has no class, the adapter is one of an
    ``AutoModel`` and the head is in ``head.safetensors``; the model card has the lines that put
    them together.

    Args:
      folder: made if it does not exist.
      fitted: the model.
      about: what is said of it.
    """
    path = pathlib.Path(folder)
    fitted, model = fitted.in_one_adapter(), fitted.model
    parts = torch_names.unstored(model, fitted.head)
    with_class = torch_names.has_class(model)
    peft_writer.save(
        path,
        matrices.split(
            fitted.targets,
            fitted.adapter,
            fitted.gain,
            lambda target, layer: torch_names.module(model, target, layer),
        ),
        base_model=models.MODELS[about.base].hub if about.base in models.MODELS else about.base,
        task_type=_task_type(model),
        saved_modules=parts if with_class else {},
    )
    if not with_class:
        save_head(path, parts)
    about.write(path)
    model_card.write(path, about, model_card.ADAPTER, mean=not with_class)


def _task_type(model: models.Pretrained) -> str:
    """PEFT's name of what the model is for PyTorch."""
    if not torch_names.has_class(model):
        return "FEATURE_EXTRACTION"
    return "SEQ_CLS" if model.config.num_labels else "CAUSAL_LM"


def save_head(folder: pathlib.Path, parts: dict[str, dict[str, np.ndarray]]) -> None:
    """Write a head that no class of `transformers` has a place for."""
    tensors = {
        f"{m}.{n}": np.ascontiguousarray(x) for m, of in parts.items() for n, x in of.items()
    }
    save_file(tensors, folder / torch_names.HEAD_FILE, metadata={"format": "pt"})


class Stored(NamedTuple):
    """What an adapter folder holds.

    Attributes:
      placed: the adapter, at its own rank.
      values: parameters of the base that the folder brings along, by path: a head, a pooler.
      labels: width of the head's output; None without a head.
    """

    placed: matrices.LoadedAdapter
    values: dict[str, np.ndarray]
    labels: int | None


def labels_of(folder: Folder) -> int | None:
    """The width of the output of an adapter folder's head, from its files' headers; None without.

    Raises:
      InputError: no readable adapter.
    """
    path = pathlib.Path(folder)
    peft_reader.read_config(path)
    shapes, head = peft_reader.shapes(path / peft_writer.WEIGHTS), path / torch_names.HEAD_FILE
    if head.is_file():
        shapes |= peft_reader.shapes(head)
    outputs = [shapes.get(name) for name in _OUTPUTS]
    return next((shape[0] for shape in outputs if shape), None)


def load_adapter(folder: Folder, model: models.Pretrained) -> Stored:
    """Read a PEFT checkpoint of a base.

    Args:
      folder: written by `save_adapter` or by PEFT.
      model: the base.

    Raises:
      InputError: as `fedjax_lora.interop.peft_reader.load`, or a head that is not whole.
    """
    path = pathlib.Path(folder)
    places, labels = torch_names.matrices(model), labels_of(path)
    paths = torch_names.unstored_paths(model, labels or 1)
    wanted = {name: shape for name, (_, shape) in paths.items()}
    shapes = {name: (target.inputs, target.outputs) for name, (target, _) in places.items()}
    loaded = peft_reader.load(path, modules=shapes, tensors=wanted)
    tensors = loaded.tensors
    if (path / torch_names.HEAD_FILE).is_file():
        tensors = tensors | peft_reader.read(path / torch_names.HEAD_FILE, wanted)
    values = torch_names.parameters(paths, tensors)
    whole = {place for place, _ in paths.values() if place.startswith("head/")}
    if (found := whole & values.keys()) and found != whole:
        raise InputError(
            f"{path} has only a part of the model's head: {', '.join(sorted(whole - found))} is "
            "missing."
        )
    return Stored(matrices.join(places, loaded.factors), values, labels)


def put_together(stored: Stored, model: models.Pretrained) -> TrainedModel:
    """The model that an adapter folder describes, on a base whose head has as many outputs.

    Args:
      stored: from `load_adapter`.
      model: the base.
    """
    head = {p.removeprefix("head/"): x for p, x in stored.values.items() if p.startswith("head/")}
    rest = {path: x for path, x in stored.values.items() if not path.startswith("head/")}
    model = models.replace_params(model, rest) if rest else model
    return TrainedModel(
        model, *stored.placed, head=trees.nested(head) if head else model.params["head"]
    )
