"""A very small random model, for tests, examples and timings of everything except the model."""

from collections.abc import Mapping
from typing import Any

import jax

from fedjax_lora.core import trees
from fedjax_lora.models.decoder_config import DECODERS, ENCODERS, DecoderConfig
from fedjax_lora.models.encoder_config import EncoderConfig
from fedjax_lora.models.huggingface.pretrained import Pretrained, fingerprint
from fedjax_lora.models.init import random_params
from fedjax_lora.models.module_types import Config, module_of

# Where a family's shape differs from BERT's.
_OTHER_SIZES: Mapping[str, Mapping[str, int]] = {
    "albert": {"embedding_size": 16},
    "camembert": {"type_vocab": 1, "max_positions": 66, "pad_token_id": 1},
    "deberta-v2": {"type_vocab": 0, "distance_buckets": 8, "longest_distance": 64},
    "distilbert": {"type_vocab": 0},
    "electra": {"embedding_size": 16},
    "mpnet": {"type_vocab": 0, "max_positions": 66, "pad_token_id": 1},
    "roberta": {"type_vocab": 1, "max_positions": 66, "pad_token_id": 1},
    "xlm-roberta": {"type_vocab": 1, "max_positions": 66, "pad_token_id": 1},
}


def _decoder_fields(family: str) -> dict[str, Any]:
    """Fields of a small decoder; those of GPT-2 and OPT have names for their own shape alone."""
    if family in ENCODERS:
        shape = {"causal": False, "layer_norm": True, "norm_bias": False, "embedding_norm": True}
        return {"kv_heads": 4, "head_dim": 8, "activation": "gelu", "fused": True, **shape}
    if family not in ("gpt2", "opt"):
        return {"kv_heads": 2, "head_dim": 8}
    biases = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
    shape = {"rope": None, "layer_norm": True, "gated": False, "fused": family == "gpt2"}
    first = {"first_position": 2 if family == "opt" else 0, "tied": True}
    return {"kv_heads": 4, "head_dim": 8, "activation": "relu", **biases, **shape, **first}


def tiny(
    *,
    num_labels: int | None = 4,
    layers: int = 2,
    family: str = "bert",
    pooling: str = "family",
    dropout: float = 0.0,
    vocab_size: int = 128,
    key: jax.Array | None = None,
) -> Pretrained:
    """Make a random model of hidden width 32 with 4 heads, for texts of up to 64 tokens.

    Args:
      num_labels: width of the logits; None makes a decoder a language model.
      layers: number of layers.
      family: a key of `families.FAMILIES`, or one of `decoder_config.DECODERS` or ``ENCODERS``.
      pooling: ``family`` or ``mean``.
      dropout: every dropout rate.
      vocab_size: valid token ids are ``0 .. vocab_size - 1``; 0 is padding (1 for RoBERTa).
      key: random key of the parameters; ``jax.random.key(0)`` if None.

    Raises:
      InputError: an option out of range.
    """
    common: dict[str, Any] = {
        "family": family,
        "vocab_size": vocab_size,
        "hidden": 32,
        "layers": layers,
        "heads": 4,
        "intermediate": 64,
        "max_positions": 64,
        "initializer_range": 0.2,  # at this width 0.02 would make every output nearly the same
        "num_labels": num_labels or 0,
        "pooling": pooling,
    }
    config: Config
    if family in (*DECODERS, *ENCODERS):
        config = DecoderConfig(**{**common, **_decoder_fields(family)})
    else:
        sizes = {"type_vocab": 2, "pad_token_id": 0, "embedding_size": 32}
        config = EncoderConfig(**{**common, **sizes, **_OTHER_SIZES.get(family, {})})
    config = config.with_dropout(dropout)
    params = random_params(config, jax.random.key(0) if key is None else key)
    paths = tuple(sorted(trees.flat(params)))
    return Pretrained(
        module=module_of(config),
        params=params,
        config=config,
        tokenizer=None,
        fingerprint=fingerprint("tiny", params, paths),
        folder=None,
        new_params=paths,
    )
