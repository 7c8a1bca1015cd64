"""Mapping between parameter paths and Hugging Face tensor names, one table per family.

A path is ``/``-joined, as from `fedjax_lora.core.trees.flat`, for example
``encoder/layers/attention/query/kernel``. Reading and writing checkpoints use the same tables.
"""

from collections.abc import Mapping
from types import MappingProxyType

from fedjax_lora.core.errors import InputError
from fedjax_lora.models.encoder_config import EncoderConfig
from fedjax_lora.models.module_types import Config

_LEAVES = MappingProxyType(
    {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
)

_EMBEDDINGS = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}


def _table(layer: str, layers: Mapping[str, str], rest: Mapping[str, str]) -> Mapping[str, str]:
    """Map module paths below ``encoder`` to Hugging Face names below the base prefix."""
    table = {f"embeddings/{path}": name for path, name in _EMBEDDINGS.items()}
    table |= {f"layers/{path}": f"{layer}.{name}" for path, name in layers.items()}
    return MappingProxyType(table | dict(rest))


_BERT = _table(
    "encoder.layer.{layer}",
    {
        "attention/query": "attention.self.query",
        "attention/key": "attention.self.key",
        "attention/value": "attention.self.value",
        "attention/output": "attention.output.dense",
        "attention/norm": "attention.output.LayerNorm",
        "feed_forward/intermediate": "intermediate.dense",
        "feed_forward/output": "output.dense",
        "feed_forward/norm": "output.LayerNorm",
    },
    {"pooler": "pooler.dense"},
)
_DISTILBERT = _table(
    "transformer.layer.{layer}",
    {
        "attention/query": "attention.q_lin",
        "attention/key": "attention.k_lin",
        "attention/value": "attention.v_lin",
        "attention/output": "attention.out_lin",
        "attention/norm": "sa_layer_norm",
        "feed_forward/intermediate": "ffn.lin1",
        "feed_forward/output": "ffn.lin2",
        "feed_forward/norm": "output_layer_norm",
    },
    {},
)
_ALBERT = _table(
    "encoder.albert_layer_groups.0.albert_layers.0",
    {
        "attention/query": "attention.query",
        "attention/key": "attention.key",
        "attention/value": "attention.value",
        "attention/output": "attention.dense",
        "attention/norm": "attention.LayerNorm",
        "feed_forward/intermediate": "ffn",
        "feed_forward/output": "ffn_output",
        "feed_forward/norm": "full_layer_layer_norm",
    },
    {"projection": "encoder.embedding_hidden_mapping_in", "pooler": "pooler"},
)
_ELECTRA = MappingProxyType({**_BERT, "projection": "embeddings_project"})
_DEBERTA = _table(
    "encoder.layer.{layer}",
    {
        **{
            f"attention/{name}": f"attention.self.{name}_proj" for name in ("query", "key", "value")
        },
        "attention/output": "attention.output.dense",
        "attention/norm": "attention.output.LayerNorm",
        "feed_forward/intermediate": "intermediate.dense",
        "feed_forward/output": "output.dense",
        "feed_forward/norm": "output.LayerNorm",
    },
    {"distances": "encoder.rel_embeddings", "distance_norm": "encoder.LayerNorm"},
)
_MPNET = _table(
    "encoder.layer.{layer}",
    {
        "attention/query": "attention.attn.q",
        "attention/key": "attention.attn.k",
        "attention/value": "attention.attn.v",
        "attention/output": "attention.attn.o",
        "attention/norm": "attention.LayerNorm",
        "feed_forward/intermediate": "intermediate.dense",
        "feed_forward/output": "output.dense",
        "feed_forward/norm": "output.LayerNorm",
    },
    {"relative_positions/bias": "encoder.relative_attention_bias"},
)
_ENCODERS = MappingProxyType(
    {
        "albert": _ALBERT,
        "bert": _BERT,
        "camembert": _BERT,
        "deberta-v2": _DEBERTA,
        "distilbert": _DISTILBERT,
        "electra": _ELECTRA,
        "mpnet": _MPNET,
        "roberta": _BERT,
        "xlm-roberta": _BERT,
    }
)
_ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")
_DECODER_LAYER = (
    "input_layernorm",
    *(f"self_attn/{name}" for name in (*_ATTENTION, "q_norm", "k_norm")),
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    *(f"mlp/{name}" for name in ("gate_proj", "up_proj", "gate_up_proj", "down_proj")),
)
_DECODER = MappingProxyType(
    {"embed_tokens": "embed_tokens", "norm": "norm"}
    | {f"layers/{name}": "layers.{layer}." + name.replace("/", ".") for name in _DECODER_LAYER}
)
_GPT2 = MappingProxyType(
    {
        "embed_tokens": "wte",
        "embed_positions": "wpe",
        "layers/input_layernorm": "h.{layer}.ln_1",
        "layers/self_attn/qkv_proj": "h.{layer}.attn.c_attn",
        "layers/self_attn/o_proj": "h.{layer}.attn.c_proj",
        "layers/post_attention_layernorm": "h.{layer}.ln_2",
        "layers/mlp/up_proj": "h.{layer}.mlp.c_fc",
        "layers/mlp/down_proj": "h.{layer}.mlp.c_proj",
        "norm": "ln_f",
    }
)
_OPT_LAYER = {
    "input_layernorm": "self_attn_layer_norm",
    **{f"self_attn/{name}": f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")},
    "self_attn/o_proj": "self_attn.out_proj",
    "post_attention_layernorm": "final_layer_norm",
    "mlp/up_proj": "fc1",
    "mlp/down_proj": "fc2",
}
_OPT = MappingProxyType(
    {
        "embed_tokens": "decoder.embed_tokens",
        "embed_positions": "decoder.embed_positions",
        "norm": "decoder.final_layer_norm",
    }
    | {f"layers/{path}": f"decoder.layers.{{layer}}.{name}" for path, name in _OPT_LAYER.items()}
)
_MODERNBERT_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn/qkv_proj": "attn.Wqkv",
    "self_attn/o_proj": "attn.Wo",
    "post_attention_layernorm": "mlp_norm",
    "mlp/gate_up_proj": "mlp.Wi",
    "mlp/down_proj": "mlp.Wo",
}
_MODERNBERT = MappingProxyType(
    {
        "embed_tokens": "embeddings.tok_embeddings",
        "embed_norm": "embeddings.norm",
        "norm": "final_norm",
    }
    | {f"layers/{path}": f"layers.{{layer}}.{name}" for path, name in _MODERNBERT_LAYER.items()}
)
_DECODERS = MappingProxyType({"gpt2": _GPT2, "opt": _OPT})
"""Families whose names are not Llama's."""

_HEADS = MappingProxyType(
    {
        "context": {"pooler": "pooler.dense", "classifier": "classifier"},
        "linear": {"classifier": "classifier"},
        "dense_gelu": {"dense": "classifier.dense", "out_proj": "classifier.out_proj"},
        "dense_tanh": {"dense": "classifier.dense", "out_proj": "classifier.out_proj"},
        "pre_classifier": {"pre_classifier": "pre_classifier", "classifier": "classifier"},
        "norm": {"dense": "head.dense", "norm": "head.norm", "classifier": "classifier"},
    }
)


def is_stacked(config: Config, path: str) -> bool:
    """Whether the variables at a path have a leading layer axis."""
    shared = isinstance(config, EncoderConfig) and config.traits.shared_layers
    return path.startswith(("encoder/layers/", "decoder/layers/")) and not shared


def is_transposed(config: Config, path: str) -> bool:
    """Whether PyTorch stores the parameter at a path as ``[o, i]``.

    These are all kernels but those of GPT-2's layers, which are of the class ``Conv1D``.
    """
    as_it_is = config.family == "gpt2" and path.startswith("decoder/")
    return path.endswith("/kernel") and not as_it_is


def is_stored(config: Config, path: str, layer: int | None) -> bool:
    """Whether a checkpoint has the parameter at a path for this layer.

    ModernBERT's first layer does not normalise its input again: that norm is not used, and 1.
    """
    if config.family != "modernbert" or layer != 0:
        return True
    return not path.startswith("encoder/layers/input_layernorm/")


def _modules(config: Config, part: str) -> Mapping[str, str]:
    """Map module paths below a part of the parameters to Hugging Face names below the prefix."""
    if isinstance(config, EncoderConfig):
        parts = {"encoder": _ENCODERS[config.family], "head": _HEADS[config.head]}
    elif not config.causal:
        head = _HEADS["norm" if config.pooling == "family" else "linear"]
        parts = {"encoder": _MODERNBERT, "head": head}
    else:
        decoder = _DECODERS.get(config.family, _DECODER)
        parts = {"decoder": decoder, "vocabulary": {"": "lm_head"}, "head": {"score": "score"}}
    return parts.get(part, {})


def hf_module(config: Config, path: str, layer: int | None = None) -> str:
    """Hugging Face name of the module at `path`, base prefix included.

    Args:
      config: the model's config.
      path: a module path, for example ``encoder/layers/attention/query``.
      layer: index of the layer, for a path whose parameters are stacked over layers.

    Returns:
      For example ``bert.encoder.layer.3.attention.self.query``.

    Raises:
      InputError: a path that this family does not have, a missing or a superfluous `layer`.
    """
    part, _, rest = path.partition("/")
    table = _modules(config, part)
    if rest not in table:
        raise InputError(f"A {config.family} model has no module {path}.")
    if is_stacked(config, path) != (layer is not None):
        need = "needs" if is_stacked(config, path) else "does not take"
        raise InputError(f"Module {path} of a {config.family} model {need} a layer number.")
    name = table[rest].format(layer=layer)
    return f"{config.prefix}.{name}" if part in ("encoder", "decoder") else name


def hf_name(config: Config, path: str, layer: int | None = None) -> str:
    """Hugging Face name of the tensor for the parameter at `path`.

    PyTorch stores kernels transposed, ``[o, i]``, see `is_transposed`; tables and vectors are
    stored as they are.

    Args:
      config: the model's config.
      path: a parameter path, ending in ``kernel``, ``bias``, ``scale`` or ``embedding``.
      layer: as for `hf_module`.

    Raises:
      InputError: as `hf_module`, or an unknown last element.
    """
    module, _, leaf = path.rpartition("/")
    if leaf not in _LEAVES:
        raise InputError(f"{path} is not a parameter: it must end in {', '.join(_LEAVES)}.")
    return f"{hf_module(config, module, layer)}.{_LEAVES[leaf]}"
