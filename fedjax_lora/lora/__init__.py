"""LoRA as pure functions over trees: targets, factors, and the adapted forward pass."""

import importlib
from typing import TYPE_CHECKING, Any

from fedjax_lora.core.types import Adapter, Gain, LoRA
from fedjax_lora.lora.apply import apply, apply_merged
from fedjax_lora.lora.kernel_axes import PRESETS
from fedjax_lora.lora.params import (
    delta,
    deltas,
    factor_mask,
    fold,
    init,
    keep,
    kernels_of,
    masked_components,
    merge,
    prefix_mask,
    spread,
    uniform_gain,
    with_kernels,
)
from fedjax_lora.lora.principal import principal
from fedjax_lora.lora.products import low_rank_term
from fedjax_lora.lora.spec import SCALES, LoraSpec, LoraTarget, make_spec, parameter_count

if TYPE_CHECKING:
    from fedjax_lora.lora import nnx

__all__ = [
    "PRESETS",
    "SCALES",
    "Adapter",
    "Gain",
    "LoRA",
    "LoraSpec",
    "LoraTarget",
    "apply",
    "apply_merged",
    "delta",
    "deltas",
    "factor_mask",
    "fold",
    "init",
    "keep",
    "kernels_of",
    "low_rank_term",
    "make_spec",
    "masked_components",
    "merge",
    "nnx",
    "parameter_count",
    "prefix_mask",
    "principal",
    "spread",
    "uniform_gain",
    "with_kernels",
]


def __getattr__(name: str) -> Any:
    """Import `nnx` when it is first used: Flax's NNX takes as long to import as Flax Linen."""
    if name == "nnx":
        return importlib.import_module("fedjax_lora.lora.nnx")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
