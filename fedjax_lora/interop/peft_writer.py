"""Writing of PEFT checkpoints: ``adapter_config.json`` and ``adapter_model.safetensors``.

A checkpoint holds the factors of adapted matrices by Hugging Face module name, each with its own
rank and scale. `fedjax_lora.interop.peft_reader` reads them.
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

__all__ = ["CONFIG", "PREFIX", "WEIGHTS", "Factors", "save"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


class Factors(NamedTuple):
    """The adapter of one matrix: the adapted matrix is ``W + scale * a @ b``.

    Attributes:
      a: first factor, ``[i, r]``.
      b: second factor, ``[r, o]``.
      scale: multiplier of the product.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        """Number of components `r`."""
        return self.a.shape[1]

    @property
    def alpha(self) -> float:
        """PEFT's ``lora_alpha``: the scale is ``alpha / r``."""
        return self.scale * self.rank


def save(
    folder: str | pathlib.Path,
    factors: Mapping[str, Factors],
    *,
    base_model: str,
    task_type: str,
    saved_modules: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Write an adapter that ``peft.PeftModel.from_pretrained`` loads.

    Args:
      folder: created if it does not exist.
      factors: factors by Hugging Face module name.
      base_model: name or folder of the base, for the config.
      task_type: PEFT's ``task_type``, such as ``"SEQ_CLS"``.
      saved_modules: PEFT's ``modules_to_save``, such as the head: tensors in PyTorch's layout by
        name within a module, by module name.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, (a, b, _) in factors.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a.T, np.float32)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b.T, np.float32)
    for module, values in saved_modules.items():
        for name, value in values.items():
            tensors[f"{PREFIX}{module}.{name}"] = np.ascontiguousarray(value)
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        **_ranks_and_alphas(factors),
        "lora_dropout": 0.0,
        "target_modules": list(factors),
        "modules_to_save": sorted(saved_modules),
        "bias": "none",
        "inference_mode": True,
    }
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _ranks_and_alphas(factors: Mapping[str, Factors]) -> dict[str, Any]:
    """The most frequent rank and alpha, and patterns for the matrices that differ from them."""
    rank = _most_frequent(pair.rank for pair in factors.values())
    alpha = _most_frequent(pair.alpha for pair in factors.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        # PEFT reads a pattern as a regular expression; a whole name matches only that module.
        "rank_pattern": {name: f.rank for name, f in factors.items() if f.rank != rank},
        "alpha_pattern": {name: f.alpha for name, f in factors.items() if f.alpha != alpha},
    }


def _most_frequent(values: Iterable[Any]) -> Any:
    return collections.Counter(values).most_common(1)[0][0]
