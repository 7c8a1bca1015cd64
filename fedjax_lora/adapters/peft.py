"""Adapters as PEFT checkpoints: ``adapter_config.json`` and ``adapter_model.safetensors``."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fedjax_lora.adapters.template import Template
from fedjax_lora.types import Adapter, LoRA

NameOf = Callable[[str, int | None], str]
"""The Hugging Face module name of a site's path and layer."""


def save(
    folder: str | pathlib.Path,
    template: Template,
    adapter: Adapter,
    *,
    name_of: NameOf,
    base_model: str,
    saved_modules: Mapping[str, np.ndarray],
    task_type: str = "SEQ_CLS",
) -> None:
    """Write an adapter that ``peft.PeftModel.from_pretrained`` loads.

    Args:
      folder: made if it does not exist.
      template: where the adapter belongs; it is used at the scale ``template.server_scale``.
      adapter: ``a: [(L,) i, R]``, ``b: [(L,) R, o]``.
      name_of: Hugging Face names of the sites.
      base_model: name or folder of the base, for the config.
      saved_modules: tensors trained in full (the task head) by Hugging Face name, PyTorch layout.
      task_type: PEFT's name of what the model does: ``SEQ_CLS`` or ``CAUSAL_LM``.
    """
    rank = next(iter(adapter.values())).a.shape[-1]
    tensors: dict[str, np.ndarray] = {}
    targets = []
    for site in template.sites:
        pair = adapter[site.path]
        for layer, adapted in enumerate(site.layers or (True,)):
            if not adapted:
                continue
            name = name_of(site.path, layer if site.stack else None)
            a, b = (np.asarray(x[layer] if site.stack else x, np.float32) for x in pair)
            targets.append(name)
            tensors[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
            tensors[f"base_model.model.{name}.lora_B.weight"] = np.ascontiguousarray(b.T)
    for name, value in saved_modules.items():
        tensors[f"base_model.model.{name}"] = np.ascontiguousarray(value)
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": template.server_scale * rank,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "modules_to_save": sorted({name.split(".")[0] for name in saved_modules}),
        "bias": "none",
        "inference_mode": True,
    }
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def from_kernels(
    template: Template,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    adapter: Adapter,
) -> Adapter:
    """One adapter that does what changed kernels and an adapter on top of them do together.

    For methods that add to the base. Factors come from a float64 SVD of the difference, cut at its
    numerical rank over all sites (so that the result has one rank).

    Args:
      template: the sites, whose server scale the result is for.
      before: the base kernels by path, ``[(L,) i, o]``.
      after: the changed kernels.
      adapter: the global adapter, used at the server scale.
    """
    found: dict[str, Any] = {}
    for path, pair in adapter.items():
        a, b, old, new = (np.asarray(x, np.float64) for x in (*pair, before[path], after[path]))
        change = (new - old) / template.server_scale + a @ b
        found[path] = np.linalg.svd(change, full_matrices=False)
    top = max(s.max() for _, s, _ in found.values())
    cut = top * np.finfo(np.float32).eps
    rank = max(1, *(int((s > cut).sum(axis=-1).max()) for _, s, _ in found.values()))
    # A narrow site has fewer components than others; zeros fill it up.
    return {
        p: LoRA(_of_width(u * s[..., None, :], rank, -1), _of_width(v, rank, -2))
        for p, (u, s, v) in found.items()
    }


def _of_width(x: np.ndarray, width: int, axis: int) -> np.ndarray:
    """An array cut or filled up with zeros along an axis."""
    x = np.moveaxis(x, axis, -1)[..., :width]
    missing = [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])]
    return np.moveaxis(np.pad(x, missing), -1, axis)
