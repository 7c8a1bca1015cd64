"""Writing a trained model as a PEFT adapter of its base, and reading it back."""

import pathlib

import numpy as np
from safetensors.numpy import save_file

from fedjax_lora import models
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.interop import matrices, model_card, peft_reader, peft_writer, torch_names
from fedjax_lora.interop.matrices import LoadedAdapter
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.interop.trained_model import TrainedModel

__all__ = ["assemble", "load_adapter", "read_num_labels", "save_adapter", "save_head"]

Folder = str | pathlib.Path

_HEAD_OUTPUTS = ("classifier.out_proj.bias", "classifier.bias", "score.weight")
"""Head parameters whose first axis is the number of outputs, by Hugging Face name."""


def save_adapter(folder: Folder, model: TrainedModel) -> None:
    """Write a model as an adapter for ``peft.PeftModel.from_pretrained``.

    The folder also holds the head, ``fedjax_lora.json`` and a model card. A pooler that the base's
    checkpoint lacks is written too, because PEFT would initialise another one. Changed base
    kernels become part of the adapter, see `TrainedModel.fold_kernels`.

    `transformers` has no class for mean pooling. The adapter of a mean-pooled model is one of an
    ``AutoModel`` with the head in ``head.safetensors``; the model card shows how to use both.

    Args:
      folder: created if it does not exist.
      model: the model.
    """
    path = pathlib.Path(folder)
    model = model.fold_kernels()
    pretrained, base = model.pretrained, model.metadata.base
    modules = torch_names.unstored(pretrained, model.head)
    with_class = torch_names.has_class(pretrained)
    peft_writer.save(
        path,
        matrices.split(
            model.targets,
            model.adapter,
            model.gain,
            lambda target, layer: torch_names.module(pretrained, target, layer),
        ),
        base_model=models.MODELS[base].hub if base in models.MODELS else base,
        task_type=_task_type(pretrained),
        saved_modules=modules if with_class else {},
    )
    if not with_class:
        save_head(path, modules)
    model.metadata.write(path)
    model_card.write(path, model.metadata, model_card.ADAPTER, mean=not with_class)


def _task_type(pretrained: models.Pretrained) -> str:
    """PEFT's ``task_type`` of a model."""
    if not torch_names.has_class(pretrained):
        return "FEATURE_EXTRACTION"
    return "SEQ_CLS" if pretrained.config.num_labels else "CAUSAL_LM"


def save_head(folder: pathlib.Path, modules: dict[str, dict[str, np.ndarray]]) -> None:
    """Write the head of a mean-pooled model to ``head.safetensors``.

    Args:
      folder: an existing folder.
      modules: tensors by name within a module, by module name.
    """
    tensors = {
        f"{module}.{name}": np.ascontiguousarray(value)
        for module, values in modules.items()
        for name, value in values.items()
    }
    save_file(tensors, folder / torch_names.HEAD_FILE, metadata={"format": "pt"})


def read_num_labels(folder: Folder) -> int | None:
    """Read the number of outputs of an adapter folder's head; None without a head.

    Only the headers of the files are read.

    Raises:
      InputError: the folder holds no readable adapter.
    """
    path = pathlib.Path(folder)
    peft_reader.read_config(path)
    shapes = peft_reader.shapes(path / peft_writer.WEIGHTS)
    head_file = path / torch_names.HEAD_FILE
    if head_file.is_file():
        shapes |= peft_reader.shapes(head_file)
    outputs = [shapes.get(name) for name in _HEAD_OUTPUTS]
    return next((shape[0] for shape in outputs if shape), None)


def load_adapter(folder: Folder, pretrained: models.Pretrained) -> LoadedAdapter:
    """Read a PEFT adapter, its head and its pooler for a base.

    Args:
      folder: written by `save_adapter` or by PEFT.
      pretrained: the base model.

    Returns:
      The adapter at the rank of its largest layer.

    Raises:
      InputError: as `fedjax_lora.interop.peft_reader.load`; or the folder has a part of a head.
    """
    path = pathlib.Path(folder)
    places, num_labels = torch_names.matrices(pretrained), read_num_labels(path)
    paths = torch_names.unstored_paths(pretrained, num_labels or 1)
    expected = {name: shape for name, (_, shape) in paths.items()}
    modules = {name: (target.inputs, target.outputs) for name, (target, _) in places.items()}
    factors, tensors = peft_reader.load(path, modules=modules, tensors=expected)
    if (path / torch_names.HEAD_FILE).is_file():
        tensors = tensors | peft_reader.read(path / torch_names.HEAD_FILE, expected)
    params = torch_names.parameters(paths, tensors)
    head = {param for param, _ in paths.values() if param.startswith("head/")}
    if (present := head & params.keys()) and present != head:
        raise InputError(
            f"{path} has only a part of the model's head: {', '.join(sorted(head - present))} is "
            "missing."
        )
    return matrices.join(places, factors)._replace(params=params, num_labels=num_labels)


def assemble(
    pretrained: models.Pretrained, loaded: LoadedAdapter, metadata: ModelMetadata
) -> TrainedModel:
    """Combine a base, a loaded adapter and its metadata.

    Args:
      pretrained: the base model, whose head has as many outputs as that of the adapter folder.
      loaded: from `load_adapter`.
      metadata: of the model.
    """
    head = {p.removeprefix("head/"): x for p, x in loaded.params.items() if p.startswith("head/")}
    others = {path: x for path, x in loaded.params.items() if not path.startswith("head/")}
    pretrained = models.replace_params(pretrained, others) if others else pretrained
    return TrainedModel(
        pretrained=pretrained,
        metadata=metadata,
        targets=loaded.targets,
        adapter=loaded.adapter,
        gain=loaded.gain,
        head=trees.nested(head) if head else pretrained.params["head"],
    )
