"""Pretrained models in Flax: Hugging Face checkpoints as modules and parameter trees.

pretrained = load("minilm", num_labels=4, pooling="mean", key=jax.random.key(0))
logits = pretrained.module.apply({"params": pretrained.params}, input_ids, attention_mask)
"""

from fedjax_lora.models.config import EncoderConfig
from fedjax_lora.models.decoder import Cache, Decoded, Decoder, init_cache
from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.encoder import Encoded, Encoder
from fedjax_lora.models.fresh import random_params
from fedjax_lora.models.heads import SequenceClassifier
from fedjax_lora.models.hf_config import from_json, read_config
from fedjax_lora.models.language import DecoderClassifier, LanguageModel, logits
from fedjax_lora.models.names import hf_module, hf_name, is_stacked
from fedjax_lora.models.pretrained import Pretrained, load, redraw
from fedjax_lora.models.sources import MODELS, Model, resolve
from fedjax_lora.models.tiny import tiny

__all__ = [
    "MODELS",
    "Cache",
    "Decoded",
    "Decoder",
    "DecoderClassifier",
    "DecoderConfig",
    "Encoded",
    "Encoder",
    "EncoderConfig",
    "LanguageModel",
    "Model",
    "Pretrained",
    "SequenceClassifier",
    "from_json",
    "hf_module",
    "hf_name",
    "init_cache",
    "is_stacked",
    "load",
    "logits",
    "random_params",
    "read_config",
    "redraw",
    "resolve",
    "tiny",
]
