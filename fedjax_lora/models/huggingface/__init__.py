"""Hugging Face checkpoints: configurations, tensors, tokenizers and their sources."""

from fedjax_lora.models.huggingface.config import from_json, read_config, read_raw
from fedjax_lora.models.huggingface.param_names import (
    hf_module,
    hf_name,
    is_stacked,
    is_stored,
    is_transposed,
)
from fedjax_lora.models.huggingface.pretrained import Pretrained, load
from fedjax_lora.models.huggingface.registry import MODELS, Model, resolve

__all__ = [
    "MODELS",
    "Model",
    "Pretrained",
    "from_json",
    "hf_module",
    "hf_name",
    "is_stacked",
    "is_stored",
    "is_transposed",
    "load",
    "read_config",
    "read_raw",
    "resolve",
]
