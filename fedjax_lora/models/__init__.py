"""Pretrained encoders and decoders in Flax, from Hugging Face checkpoints.

pretrained = load("minilm", num_labels=4, pooling="mean", key=jax.random.key(0))
logits = pretrained.module.apply({"params": pretrained.params}, input_ids, attention_mask)

The modules are written in Linen for this package: `transformers` 5 has no Flax classes, and the
maintained NNX models (google-tunix, bonsai) need other versions of jax and have no encoders and
classifiers, see the page on model libraries. Here layers are scanned, every product is an
`nn.Dense` that can be found by its path, and a frozen base is shared under `jax.vmap`.
"""

from fedjax_lora.models.causal_lm import DecoderClassifier, LanguageModel, logits
from fedjax_lora.models.decoder import Decoded, Decoder
from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.encoder import Encoded, Encoder
from fedjax_lora.models.encoder_config import EncoderConfig
from fedjax_lora.models.heads import SequenceClassifier
from fedjax_lora.models.huggingface.config import from_json, read_config, read_raw
from fedjax_lora.models.huggingface.gguf import is_gguf
from fedjax_lora.models.huggingface.param_names import (
    hf_module,
    hf_name,
    is_stacked,
    is_stored,
    is_transposed,
)
from fedjax_lora.models.huggingface.pretrained import (
    Pretrained,
    frozen_base,
    has_split_layers,
    load,
    reinitialize,
    replace_params,
)
from fedjax_lora.models.huggingface.registry import MODELS, Model, resolve
from fedjax_lora.models.init import abstract_params, random_params
from fedjax_lora.models.init import shapes as param_shapes
from fedjax_lora.models.kv_cache import Cache, init_cache
from fedjax_lora.models.module_types import is_encoder, module_of, supports_unpadding
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
    "abstract_params",
    "from_json",
    "frozen_base",
    "has_split_layers",
    "hf_module",
    "hf_name",
    "init_cache",
    "is_encoder",
    "is_gguf",
    "is_stacked",
    "is_stored",
    "is_transposed",
    "load",
    "logits",
    "module_of",
    "param_shapes",
    "random_params",
    "read_config",
    "read_raw",
    "reinitialize",
    "replace_params",
    "resolve",
    "supports_unpadding",
    "tiny",
]
