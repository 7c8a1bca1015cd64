"""PEFT checkpoints: ``adapter_config.json`` and ``adapter_model.safetensors``.

This module writes them; `fedjax_lora.interop.peft_reader` reads them. A checkpoint is adapted
matrices by their Hugging Face names, each with its own rank and scale.
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


class Factors(NamedTuple):
    """The adapter of one matrix: ``W + scale * a @ b``."""

    a: np.ndarray  # [i, r]
    b: np.ndarray  # [r, o]
    scale: float

    @property
    def rank(self) -> int:
        """The number of components."""
        return self.a.shape[1]

    @property
    def alpha(self) -> float:
        """PEFT's alpha: it multiplies by ``alpha / r``."""
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
      folder: made if it does not exist.
      factors: by Hugging Face module name.
      base_model: name or folder of the base, for the config.
      task_type: PEFT's name of the class of models that the adapter is for.
      saved_modules: what is not low-rank (the task head): tensors by their name in a module, in
        PyTorch's layout, by the module's name.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, (a, b, _) in factors.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = np.ascontiguousarray(a.T, np.float32)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = np.ascontiguousarray(b.T, np.float32)
    for module, parts in saved_modules.items():
        for name, value in parts.items():
            tensors[f"{PREFIX}{module}.{name}"] = np.ascontiguousarray(value)
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        **_ranks(factors),
        "lora_dropout": 0.0,
        "target_modules": list(factors),
        "modules_to_save": sorted(saved_modules),
        "bias": "none",
        "inference_mode": True,
    }
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _ranks(factors: Mapping[str, Factors]) -> dict[str, Any]:
    """The most frequent rank and alpha, and the matrices that differ from them."""
    rank = _most_frequent(pair.rank for pair in factors.values())
    alpha = _most_frequent(pair.alpha for pair in factors.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        # PEFT reads a pattern as a regular expression; that of a whole name matches it alone.
        "rank_pattern": {name: f.rank for name, f in factors.items() if f.rank != rank},
        "alpha_pattern": {name: f.alpha for name, f in factors.items() if f.alpha != alpha},
    }


def _most_frequent(values: Iterable[Any]) -> Any:
    return collections.Counter(values).most_common(1)[0][0]
