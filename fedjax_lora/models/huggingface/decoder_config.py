"""Conversion of `transformers` configurations of decoders to `DecoderConfig`."""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.rope import ROPE_TYPES, Rope

_ONLY: Mapping[str, Mapping[str, tuple[object, str]]] = MappingProxyType(
    {
        "gpt2": {
            "add_cross_attention": (False, "attention to an encoder"),
            "scale_attn_by_inverse_layer_idx": (False, "attention scaled by the layer's number"),
        },
        "modernbert": {
            "attention_dropout": (0, "dropout of the attention's output"),
            "mlp_dropout": (0, "dropout inside the feed-forward block"),
        },
        "opt": {
            "do_layer_norm_before": (True, "LayerNorm after each block, as in OPT-350m"),
            "_remove_final_layer_norm": (False, "no LayerNorm after the last layer"),
            "layer_norm_elementwise_affine": (True, "LayerNorms without parameters"),
            "layerdrop": (0, "layers left out in training"),
        },
    }
)
"""Fields that may have one value alone, and what other values mean."""

_OPT_HIDDEN = 768  # the default of `transformers`


def unsupported(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield features of a ``config.json`` that change the function and that `Decoder` lacks."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        yield "rope parameters that are no JSON object"
        return
    inner = [part for part in rope.values() if isinstance(part, Mapping)]  # by type of layer
    for part in inner or [rope]:
        yield from _unsupported_rope(part, raw)
    if raw.get("use_bidirectional_attention"):
        yield "attention to later tokens"
    if raw.get("quantization_config"):
        yield "quantised weights (use the original checkpoint, and storage int8 or nf4)"
    if raw.get("model_type") == "mistral" and raw.get("layer_types"):
        yield "layer_types in a mistral model"
    for name, (only, meaning) in _ONLY.get(str(raw.get("model_type")), {}).items():
        if raw.get(name, only) != only:
            yield f"{meaning} ({name}={raw[name]!r})"
    if raw.get("model_type") == "opt":
        width = raw.get("word_embed_proj_dim")
        if width is not None and width != raw.get("hidden_size", _OPT_HIDDEN):
            yield f"embeddings of another width than the states (word_embed_proj_dim={width!r})"


def _unsupported_rope(rope: Mapping[str, Any], raw: Mapping[str, Any]) -> Iterator[str]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        yield f"rope type {kind!r} (only {', '.join(ROPE_TYPES)})"
    if (rope.get("partial_rotary_factor", raw.get("partial_rotary_factor")) or 1.0) != 1.0:
        yield "rotary embeddings of a part of each head"


def decoder_config(hf: Any, **options: Any) -> DecoderConfig:
    """Make the config of a decoder; `options` replace fields of `hf`."""
    own = {"gpt2": _gpt2, "modernbert": _modernbert, "opt": _opt}.get(hf.model_type, _llama)
    return DecoderConfig(**{**_common(hf), **own(hf), **options})


def _common(hf: Any) -> dict[str, Any]:
    """Fields that every family's config has under the same name."""
    architectures = tuple(hf.architectures or ())
    classifier = any(name.endswith("ForSequenceClassification") for name in architectures)
    return {
        "family": hf.model_type,
        "vocab_size": hf.vocab_size,
        "hidden": hf.hidden_size,
        "layers": hf.num_hidden_layers,
        "heads": hf.num_attention_heads,
        "max_positions": hf.max_position_embeddings,
        "tied": hf.tie_word_embeddings,
        "num_labels": hf.num_labels if classifier else 0,
        "architectures": architectures,
    }


def _gpt2(hf: Any) -> dict[str, Any]:
    return _learned_positions(hf) | {
        "intermediate": 4 * hf.n_embd if hf.n_inner is None else hf.n_inner,
        "norm_eps": hf.layer_norm_epsilon,
        "fused": True,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "attention_scale": None if hf.scale_attn_weights else 1.0,
        "attention_dropout": float(hf.attn_pdrop),
        "hidden_dropout": float(hf.resid_pdrop),
        "embedding_dropout": float(hf.embd_pdrop),
        "initializer_range": hf.initializer_range,
    }


def _modernbert(hf: Any) -> dict[str, Any]:
    """Fields of ModernBERT (arXiv 2412.13663)."""
    kinds = hf.layer_types
    return {
        "causal": False,
        "kv_heads": hf.num_attention_heads,
        "head_dim": hf.hidden_size // hf.num_attention_heads,
        "intermediate": int(hf.intermediate_size),
        "layer_norm": True,
        "norm_bias": hf.norm_bias,
        "norm_eps": hf.norm_eps,
        "embedding_norm": True,
        "activation": hf.hidden_activation,
        "fused": True,
        "qkv_bias": hf.attention_bias,
        "output_bias": hf.attention_bias,
        "mlp_bias": hf.mlp_bias,
        "sliding_window": _window(hf, kinds),
        "full_layers": tuple(n for n, kind in enumerate(kinds) if kind == "full_attention"),
        "embedding_dropout": float(hf.embedding_dropout),
        "head_dropout": float(hf.classifier_dropout),
        "head_pooling": "first" if hf.classifier_pooling == "cls" else hf.classifier_pooling,
        "head_activation": hf.classifier_activation,
        "head_bias": hf.classifier_bias,
        "initializer_range": hf.initializer_range,
        **_ropes(hf),
    }


def _opt(hf: Any) -> dict[str, Any]:
    return _learned_positions(hf) | {
        "intermediate": hf.ffn_dim,
        "first_position": 2,  # fixed in the architecture, not a field of its config
        "norm_eps": 1e-5,  # likewise
        "qkv_bias": hf.enable_bias,
        "output_bias": hf.enable_bias,
        "mlp_bias": hf.enable_bias,
        "attention_dropout": float(hf.attention_dropout),
        "hidden_dropout": float(hf.dropout),
        "initializer_range": hf.init_std,
    }


def _learned_positions(hf: Any) -> dict[str, Any]:
    """Fields in which GPT-2 and OPT (arXiv 2205.01068) agree, and differ from Llama."""
    return {
        "rope": None,
        "layer_norm": True,
        "gated": False,
        "kv_heads": hf.num_attention_heads,
        "head_dim": hf.hidden_size // hf.num_attention_heads,
        "activation": hf.activation_function,
    }


def _llama(hf: Any) -> dict[str, Any]:
    family = hf.model_type
    bias = getattr(hf, "attention_bias", False)
    kinds = getattr(hf, "layer_types", None) or []
    return {
        "kv_heads": hf.num_key_value_heads,
        "head_dim": getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        "intermediate": hf.intermediate_size,
        "norm_eps": hf.rms_norm_eps,
        "activation": getattr(hf, "hidden_activation", None) or hf.hidden_act,
        "qkv_bias": family == "qwen2" or bias,
        "output_bias": bias,
        "mlp_bias": getattr(hf, "mlp_bias", False),
        "qk_norm": family in ("qwen3", "gemma3_text"),
        "fused": family == "phi3",
        "sliding_window": _window(hf, kinds),
        "full_layers": tuple(n for n, kind in enumerate(kinds) if kind == "full_attention"),
        "attention_dropout": float(hf.attention_dropout or 0.0),
        "initializer_range": hf.initializer_range,
        **_ropes(hf),
        **(_gemma(hf) if family.startswith("gemma") else {}),
    }


def _gemma(hf: Any) -> dict[str, Any]:
    """Fields in which Gemma 2 (arXiv 2408.00118) and 3 (arXiv 2503.19786) differ from Llama."""
    return {
        "norm_offset": 1.0,
        "sandwich_norms": True,
        "embedding_scale": float(hf.hidden_size) ** 0.5,
        "attention_scale": float(hf.query_pre_attn_scalar) ** -0.5,
        # Gemma 3 has the field, and does not use it.
        "attention_softcap": hf.attn_logit_softcapping if hf.model_type == "gemma2" else None,
        "logit_softcap": hf.final_logit_softcapping,
    }


def _ropes(hf: Any) -> dict[str, Any]:
    """The position embeddings of the layers."""
    stated, window = hf.rope_parameters, hf.max_position_embeddings
    fields: dict[str, Any] = {}
    if "full_attention" in stated:
        fields["local_rope"] = _rope(stated["sliding_attention"], window)
        stated = stated["full_attention"]
    with_rope = getattr(hf, "no_rope_layers", None) or []  # 1 for a layer with it
    fields["unrotated_layers"] = tuple(n for n, has in enumerate(with_rope) if not has)
    return fields | {"rope": _rope(stated, window)}


def _window(hf: Any, kinds: list[str]) -> int | None:
    if kinds and "sliding_attention" not in kinds:
        return None
    return getattr(hf, "sliding_window", None)


def _rope(stated: Mapping[str, Any], window: int) -> Rope:
    original = stated.get("original_max_position_embeddings") or window
    factor = 1.0 if stated.get("factor") is None else stated["factor"]
    common = {
        "type": stated.get("rope_type", "default"),
        "theta": float(stated["rope_theta"]),
        "factor": float(factor),
        "original_positions": int(original),
    }
    if common["type"] == "llama3":
        common |= {
            "low_frequency": float(stated["low_freq_factor"]),
            "high_frequency": float(stated["high_freq_factor"]),
        }
    if common["type"] == "yarn":
        common |= {
            "beta_fast": float(stated.get("beta_fast") or 32),
            "beta_slow": float(stated.get("beta_slow") or 1),
            "attention_factor": _yarn_attention(stated, factor),
            "truncate": bool(stated.get("truncate", True)),
        }
    return Rope(**common)


def _yarn_attention(stated: Mapping[str, Any], factor: float) -> float:
    """Stated multiplier of sines and cosines, or else the one that the paper suggests."""
    if (attention_factor := stated.get("attention_factor")) is not None:
        return float(attention_factor)

    def suggested(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    top, bottom = stated.get("mscale"), stated.get("mscale_all_dim")
    return suggested(top) / suggested(bottom) if top and bottom else suggested(1.0)
