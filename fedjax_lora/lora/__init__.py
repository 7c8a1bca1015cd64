"""LoRA as pure functions over trees: where adapters go, their factors, and how they are applied."""

from fedjax_lora.core.types import Adapter, Gain
from fedjax_lora.lora.apply import apply, low_rank_term
from fedjax_lora.lora.params import (
    delta,
    deltas,
    factor_mask,
    fold,
    init,
    keep,
    masked_components,
    merge,
    prefix_mask,
    spread,
    times,
    uniform_gain,
)
from fedjax_lora.lora.spec import PRESETS, SCALES, LoraSpec, LoraTarget, make_spec, parameter_count

__all__ = [
    "PRESETS",
    "SCALES",
    "Adapter",
    "Gain",
    "LoraSpec",
    "LoraTarget",
    "apply",
    "delta",
    "deltas",
    "factor_mask",
    "fold",
    "init",
    "keep",
    "low_rank_term",
    "make_spec",
    "masked_components",
    "merge",
    "parameter_count",
    "prefix_mask",
    "spread",
    "times",
    "uniform_gain",
]
