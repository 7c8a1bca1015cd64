"""Pretrained encoders in Flax: Hugging Face checkpoints as modules and parameter trees.

pretrained = load("minilm", num_labels=4, pooling="mean", key=jax.random.key(0))
logits = pretrained.module.apply({"params": pretrained.params}, input_ids, attention_mask)
"""

from fedjax_lora.models.config import EncoderConfig
from fedjax_lora.models.encoder import Encoded, Encoder
from fedjax_lora.models.fresh import random_params
from fedjax_lora.models.fresh import shapes as param_shapes
from fedjax_lora.models.heads import SequenceClassifier
from fedjax_lora.models.hf_config import from_json, read_config, read_raw
from fedjax_lora.models.names import hf_module, hf_name, is_stacked
from fedjax_lora.models.pretrained import Pretrained, frozen, load, redraw, with_values
from fedjax_lora.models.sources import MODELS, Model, resolve
from fedjax_lora.models.tiny import tiny

__all__ = [
    "MODELS",
    "Encoded",
    "Encoder",
    "EncoderConfig",
    "Model",
    "Pretrained",
    "SequenceClassifier",
    "from_json",
    "frozen",
    "hf_module",
    "hf_name",
    "is_stacked",
    "load",
    "param_shapes",
    "random_params",
    "read_config",
    "read_raw",
    "redraw",
    "resolve",
    "tiny",
    "with_values",
]
