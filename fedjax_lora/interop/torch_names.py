"""Names of modules and parameters of a model in PyTorch.

With the family's own pooling, names are those of the ``...ForSequenceClassification`` or
``...ForCausalLM`` class of `transformers`. It has no class for mean pooling: the encoder is then an
``AutoModel``, whose names have no prefix, and the head is in a separate file.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from fedjax_lora import models
from fedjax_lora.core import quantization, trees
from fedjax_lora.core.types import Params
from fedjax_lora.interop.matrices import MatrixPlace
from fedjax_lora.lora import LoraTarget

__all__ = [
    "HEAD_FILE",
    "has_class",
    "matrices",
    "module",
    "parameters",
    "tensors",
    "unstored",
    "unstored_paths",
    "vocabulary",
]

HEAD_FILE = "head.safetensors"
"""The head of a mean-pooled model."""


def has_class(model: models.Pretrained) -> bool:
    """Whether `transformers` has a class for the model together with its head."""
    return model.config.pooling == "family"


def module(model: models.Pretrained, path: str, layer: int | None = None) -> str:
    """Return the PyTorch name of the module at a path.

    Args:
      model: the base model.
      path: path of the module's parameters.
      layer: layer of a stack; None for a module that is not stacked.
    """
    return _class_name(model, models.hf_module(model.config, path, layer))


def matrices(model: models.Pretrained, *, bare: bool = False) -> dict[str, MatrixPlace]:
    """Return the place of each matrix of the base by name.

    Args:
      model: the base model.
      bare: names as in an ``AutoModel``, without the base's prefix.
    """
    places: dict[str, MatrixPlace] = {}
    base = {part: model.params[part] for part in model.params if part in ("encoder", "decoder")}
    for parameter, leaf in trees.flat(base).items():
        if parameter.endswith("/kernel"):
            path, shape = parameter.removesuffix("/kernel"), leaf.shape
            stacked = models.is_stacked(model.config, path)
            layers = (True,) * shape[0] if stacked else None
            target = LoraTarget(path, int(shape[-2]), int(shape[-1]), layers)
            for layer in range(shape[0]) if stacked else (None,):
                name = models.hf_module(model.config, path, layer)
                places[_bare(model, name) if bare else name] = target, layer
    return places


def vocabulary(model: models.Pretrained, *, bare: bool = False) -> dict[str, str]:
    """Return the paths of the embedding table and of a language model's vocabulary matrix.

    Args:
      model: the base model.
      bare: names as in an ``AutoModel``, without the base's prefix.

    Returns:
      Path of the parameter by the tensor's name; both names have one path if they are tied.
    """
    flat = trees.flat(model.params)
    tables = ("encoder/embeddings/word", "encoder/embed_tokens", "decoder/embed_tokens")
    candidates = (*tables, "vocabulary")
    paths = [f"{part}/embedding" for part in candidates if f"{part}/embedding" in flat]
    names = {models.hf_name(model.config, path): path for path in paths}
    if not model.config.num_labels and "vocabulary/embedding" not in flat:
        names["lm_head.weight"] = "decoder/embed_tokens/embedding"
    return {_bare(model, name) if bare else name: path for name, path in names.items()}


def tensors(model: models.Pretrained, params: Params) -> dict[str, np.ndarray]:
    """Convert parameters to PyTorch's names and layout, without a copy where they are on a CPU.

    Args:
      model: the base model.
      params: parameters of the model or of a part of it.

    Returns:
      Float arrays by name, kernels as PyTorch stores them, one per layer of a stack.
    """
    named = {}
    for path, leaf in trees.flat(params).items():
        value = np.asarray(quantization.dequantize(leaf))
        stacked = models.is_stacked(model.config, path)
        for layer in range(value.shape[0]) if stacked else (None,):
            if not models.is_stored(model.config, path, layer):
                continue
            array = value if layer is None else value[layer]
            name = _class_name(model, models.hf_name(model.config, path, layer))
            named[name] = array.T if models.is_transposed(model.config, path) else array
    return named


def unstored(model: models.Pretrained, head: Params) -> dict[str, dict[str, np.ndarray]]:
    """Collect what a checkpoint of the base lacks: the head and a newly initialised pooler.

    Args:
      model: the base model.
      head: parameters of the head.

    Returns:
      Tensors by name within a module, by module name.
    """
    flat = trees.flat(model.params)
    pooler = trees.nested({path: flat[path] for path in _new_pooler_paths(model)})
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors(model, pooler | {"head": head}).items():
        # A head is one module, a pooler is one layer of the encoder.
        module_name, _, rest = name.rpartition(".") if ".pooler" in name else name.partition(".")
        modules.setdefault(module_name, {})[rest] = value
    return modules


def unstored_paths(model: models.Pretrained, labels: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """List the parameters that an adapter folder may hold besides factors.

    These are a head, and a pooler if the base's checkpoint has none.

    Args:
      model: the base model.
      labels: number of outputs of the head.

    Returns:
      Path and shape in PyTorch's layout, by name with the base's prefix.
    """
    config = dataclasses.replace(model.config, num_labels=labels)
    return {
        models.hf_name(model.config, path): (path, shape[::-1] if len(shape) == 2 else shape)
        for path, shape in models.param_shapes(config).items()
        if path.startswith("head/") or path in _new_pooler_paths(model)
    }


def parameters(
    paths: Mapping[str, tuple[str, tuple[int, ...]]], values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Convert tensors by PyTorch name to parameters by path.

    Args:
      paths: from `unstored_paths`.
      values: tensors in PyTorch's layout by some of these names.
    """
    return {
        paths[name][0]: np.ascontiguousarray(value.T if value.ndim == 2 else value)
        for name, value in values.items()
    }


def _new_pooler_paths(model: models.Pretrained) -> list[str]:
    """Paths of a pooler that was newly initialised, not read from the base's checkpoint."""
    return [path for path in model.new_params if path.startswith("encoder/pooler/")]


def _bare(model: models.Pretrained, name: str) -> str:
    return name.removeprefix(f"{model.config.prefix}.")


def _class_name(model: models.Pretrained, name: str) -> str:
    """A name as the model's class in PyTorch has it."""
    return name if has_class(model) else _bare(model, name)
