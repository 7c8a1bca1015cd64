"""Writing a trained model as a PEFT adapter of its base, and reading it back."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from fedjax_lora import models
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.interop import (
    matrices,
    model_card,
    peft_config,
    peft_init,
    peft_reader,
    peft_writer,
    torch_names,
)
from fedjax_lora.interop.matrices import LoadedAdapter, MatrixPlace
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.interop.predict import answer_end
from fedjax_lora.interop.trained_model import TrainedModel

__all__ = [
    "assemble",
    "check_task",
    "load_adapter",
    "read_num_labels",
    "save_adapter",
    "save_head",
    "without_head",
]

Folder = str | pathlib.Path

_HEAD_OUTPUTS = ("classifier.out_proj.bias", "classifier.bias", "score.weight")
"""Head parameters whose first axis is the number of outputs, by Hugging Face name."""


def save_adapter(folder: Folder, model: TrainedModel, *, pad_ranks: bool = True) -> None:
    """Write a model as an adapter for ``peft.PeftModel.from_pretrained``.

    The folder also holds the head, ``fedjax_lora.json`` and a model card. A pooler that the base's
    checkpoint lacks is written too, because PEFT would initialise another one. Changed base
    kernels become part of the adapter, see `TrainedModel.fold_kernels`.

    `transformers` has no class for mean pooling. The adapter of a mean-pooled model is one of an
    ``AutoModel`` with the head in ``head.safetensors``; the model card shows how to use both.

    Args:
      folder: created if it does not exist.
      model: the model.
      pad_ranks: store one rank and one scale for all layers, with components of zeros. False
        stores the rank of each layer in ``rank_pattern`` and ``alpha_pattern``, which is smaller
        and right in PEFT, but llama.cpp and vLLM read one ``r`` and one ``lora_alpha``, and would
        scale the layers of other ranks wrongly.
    """
    path = pathlib.Path(folder)
    model = model.fold_kernels()
    pretrained, base = model.pretrained, model.metadata.base
    modules = torch_names.unstored(pretrained, model.head)
    with_class = torch_names.has_class(pretrained)
    factors = matrices.split(
        model.targets,
        model.adapter,
        model.gain,
        lambda target, layer: torch_names.module(pretrained, target, layer),
    )
    peft_writer.save(
        path,
        matrices.pad_ranks(factors) if pad_ranks else factors,
        base_model=models.MODELS[base].hub if base in models.MODELS else base,
        task_type=_task_type(pretrained),
        saved_modules=modules if with_class else {},
    )
    if not with_class:
        save_head(path, modules)
    model.metadata.write(path)
    end = answer_end(model) if model.metadata.language else None
    model_card.write(path, model.metadata, model_card.ADAPTER, pretrained=pretrained, end=end)


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
    peft_config.read_config(path)
    shapes = _shapes(path)
    outputs = [shapes.get(name) for name in _HEAD_OUTPUTS]
    return next((shape[0] for shape in outputs if shape), None)


def _shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of an adapter folder, its separate head included."""
    shapes = peft_reader.shapes(path / peft_writer.WEIGHTS)
    head_file = path / torch_names.HEAD_FILE
    return shapes | (peft_reader.shapes(head_file) if head_file.is_file() else {})


def without_head(folder: Folder) -> InputError:
    """Return the error for an adapter that has no head, with the tensors that might be one."""
    path = pathlib.Path(folder)
    task = peft_config.task_of(peft_config.read_config(path))
    names = sorted(name for name in _shapes(path) if ".lora_" not in name)
    facts = [f"task_type {task}"] if task else []
    facts += [f"its other tensors are {', '.join(names[:5])}"] if names else []
    return InputError(
        f"The adapter in {folder} has no head{' (' + '; '.join(facts) + ')' if facts else ''}: it "
        "can be trained, but not used."
    )


def check_task(folder: Folder, *, language: bool) -> None:
    """Check that an adapter is of a kind of task, before a model is loaded for it.

    Args:
      folder: the adapter folder.
      language: whether it is to be used as a language model, not as a text classifier.

    Raises:
      InputError: the folder holds no readable adapter, or that of another task.
    """
    task = peft_config.task_of(peft_config.read_config(folder))
    has_head = read_num_labels(folder) is not None
    # An encoder without a head, and an adapter that does not say what it is for, fit both.
    fitting = (None, "CAUSAL_LM") if language else (None, "SEQ_CLS", "FEATURE_EXTRACTION")
    if task not in fitting:
        raise InputError(
            f"The adapter in {folder} is one for {task}, and what is needed is one for "
            f"{fitting[1]}; use an adapter of that task_type."
        )
    if language and has_head:
        raise InputError(
            f"The adapter in {folder} has the head of a classifier, and what is needed is an "
            "adapter of a language model."
        )


def load_adapter(folder: Folder, pretrained: models.Pretrained) -> LoadedAdapter:
    """Read a PEFT adapter, its head and its pooler for a base.

    Args:
      folder: written by `save_adapter` or by PEFT.
      pretrained: the base model.

    Returns:
      The adapter at the rank of its largest layer.

    Raises:
      InputError: as `check_task` and `fedjax_lora.interop.peft_reader.load`; or the folder has a
        part of a head.
    """
    path = pathlib.Path(folder)
    check_task(path, language=not pretrained.config.num_labels)
    places, num_labels = _places(path, pretrained), read_num_labels(path)
    paths = torch_names.unstored_paths(pretrained, num_labels or 1)
    expected = {name: shape for name, (_, shape) in paths.items()}
    modules = {name: (target.inputs, target.outputs) for name, (target, _) in places.items()}
    base = trees.flat(pretrained.params)
    tables = torch_names.vocabulary(pretrained, bare=_is_bare(path, pretrained))
    shapes = {name: tuple(base[param].shape) for name, param in tables.items()}
    factors, tensors = peft_reader.load(path, modules=modules, tensors=expected | shapes)
    tensors = _without_tables(path, tensors, {name: base[param] for name, param in tables.items()})
    init = _change_of_base(path, pretrained)
    factors = peft_init.add_change_of_base(init, factors, lambda name: _kernel(base, places[name]))
    if (path / torch_names.HEAD_FILE).is_file():
        tensors = tensors | peft_reader.read(path / torch_names.HEAD_FILE, expected)
    params = torch_names.parameters(paths, tensors)
    head = {param for param, _ in paths.values() if param.startswith("head/")}
    if (present := head & params.keys()) and present != head:
        raise InputError(
            f"{path} has only a part of the model's head: {', '.join(sorted(head - present))} is "
            "missing."
        )
    factors = {name: matrices.compress(matrices.unpad(pair)) for name, pair in factors.items()}
    return matrices.join(places, factors)._replace(params=params, num_labels=num_labels)


def _change_of_base(path: pathlib.Path, pretrained: models.Pretrained) -> str | None:
    """How the adapter's initialisation changes the base; see `peft_config.changes_base`.

    Raises:
      InputError: PEFT cannot repeat the initialisation on this base.
    """
    init = peft_config.changes_base(peft_config.read_config(path))
    if init == "olora" and pretrained.config.family == "gpt2":
        raise InputError(
            f"The adapter in {path} has init_lora_weights 'olora', which PEFT does not define for "
            "GPT-2's layers (Conv1D); save it with save_pretrained(folder, "
            "path_initial_model_for_weight_conversion=INITIAL)."
        )
    return init


def _places(path: pathlib.Path, pretrained: models.Pretrained) -> dict[str, MatrixPlace]:
    """The places of the base's matrices, named as in the adapter's file."""
    return torch_names.matrices(pretrained, bare=_is_bare(path, pretrained))


def _is_bare(path: pathlib.Path, pretrained: models.Pretrained) -> bool:
    """Whether an adapter is one of an ``AutoModel``, whose names have no prefix of the base."""
    bare = torch_names.matrices(pretrained, bare=True)
    stored = peft_reader.shapes(path / peft_writer.WEIGHTS)
    return not bare.keys().isdisjoint(name.partition(".lora_")[0] for name in stored)


def _without_tables(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], tables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Leave out copies of the base's embeddings, which PEFT stores with ``save_embedding_layers``.

    Raises:
      InputError: they are other ones than the base's.
    """
    changed = [
        name
        for name, table in tables.items()
        if name in tensors
        and not isinstance(table, jax.ShapeDtypeStruct)
        # Bit for bit, at the precision in which the base is held.
        and not np.array_equal(tensors[name].astype(table.dtype), np.asarray(table))
    ]
    if changed:
        raise InputError(
            f"{path} brings other embeddings than the base has ({', '.join(changed)}), and an "
            "adapter cannot change them here; merge it with PEFT's merge_and_unload."
        )
    return {name: value for name, value in tensors.items() if name not in tables}


def _kernel(base: Mapping[str, Any], place: MatrixPlace) -> Any:
    """The kernel of one matrix, ``[i, o]``, or its codes; abstract parameters are left stacked."""
    target, layer = place
    kernel = base[f"{target.path}/kernel"]
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(kernel))
    return kernel if layer is None or abstract else jax.tree.map(lambda x: x[layer], kernel)


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
