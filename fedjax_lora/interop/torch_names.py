"""What the parts of a model are called in PyTorch.

With the family's own pooling the model is `transformers`' ``...ForSequenceClassification``. With
mean pooling `transformers` has no class for it: there the encoder is an ``AutoModel``, whose names
have no prefix, and the head stands in a file of its own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lora import models
from fedjax_lora.core import quantization, trees
from fedjax_lora.core.types import Params
from fedjax_lora.lora import LoraTarget

HEAD_FILE = "head.safetensors"

Place = tuple[LoraTarget, int | None]


def has_class(model: models.Pretrained) -> bool:
    """Whether `transformers` has a class for the model, head included."""
    return model.config.pooling == "family"


def module(model: models.Pretrained, path: str, layer: int | None = None) -> str:
    """The name of the module at a path, in the class that the model is for PyTorch."""
    return _shown(model, models.hf_module(model.config, path, layer))


def matrices(model: models.Pretrained) -> dict[str, Place]:
    """Where each matrix of the base is, by its name with and without the base's prefix."""
    found: dict[str, Place] = {}
    base = {part: model.params[part] for part in model.params if part in ("encoder", "decoder")}
    for parameter, leaf in trees.flat(base).items():
        if parameter.endswith("/kernel"):
            path, shape = parameter.removesuffix("/kernel"), leaf.shape
            stacked = models.is_stacked(model.config, path)
            layers = (True,) * shape[0] if stacked else None
            target = LoraTarget(path, int(shape[-2]), int(shape[-1]), layers)
            for layer in range(shape[0]) if stacked else (None,):
                name = models.hf_module(model.config, path, layer)
                found |= {name: (target, layer), _bare(model, name): (target, layer)}
    return found


def tensors(model: models.Pretrained, params: Params) -> dict[str, np.ndarray]:
    """Parameters by PyTorch name, in PyTorch's layout; a view of each where it is on a CPU."""
    found = {}
    for path, leaf in trees.flat(params).items():
        value = np.asarray(quantization.dequantize(leaf))
        stacked = models.is_stacked(model.config, path)
        for layer in range(value.shape[0]) if stacked else (None,):
            one = value if layer is None else value[layer]
            name = _shown(model, models.hf_name(model.config, path, layer))
            found[name] = one.T if path.endswith("/kernel") else one
    return found


def unstored(model: models.Pretrained, head: Params) -> dict[str, dict[str, np.ndarray]]:
    """What a checkpoint of the base lacks: the head and a pooler that was drawn.

    Returns:
      Tensors by their name in a module, by the module's name.
    """
    drawn = {path: trees.flat(model.params)[path] for path in _drawn(model)}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, value in tensors(model, trees.nested(drawn) | {"head": head}).items():
        # A head is one module, a pooler one layer of the encoder.
        whole, _, rest = name.rpartition(".") if ".pooler" in name else name.partition(".")
        parts.setdefault(whole, {})[rest] = value
    return parts


def unstored_paths(model: models.Pretrained, labels: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a folder may hold besides factors: path and stored shape, by name with the prefix.

    That is a head, and a pooler where the base's checkpoint has none.

    Args:
      model: the base.
      labels: width of the head's output.
    """
    config = dataclasses.replace(model.config, num_labels=labels)
    return {
        models.hf_name(model.config, path): (path, shape[::-1] if len(shape) == 2 else shape)
        for path, shape in models.param_shapes(config).items()
        if path.startswith("head/") or path in _drawn(model)
    }


def parameters(paths: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters by path, from tensors by name; see `unstored_paths`."""
    return {
        paths[name][0]: np.ascontiguousarray(value.T if value.ndim == 2 else value)
        for name, value in values.items()
    }


def _drawn(model: models.Pretrained) -> list[str]:
    return [path for path in model.new_params if path.startswith("encoder/pooler/")]


def _bare(model: models.Pretrained, name: str) -> str:
    return name.removeprefix(f"{model.config.prefix}.")


def _shown(model: models.Pretrained, name: str) -> str:
    return name if has_class(model) else _bare(model, name)
