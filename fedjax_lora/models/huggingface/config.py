"""A model's config from a Hugging Face ``config.json``."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.untrusted_files import check_regular_file, read_json
from fedjax_lora.models.decoder_config import DECODERS, ENCODERS
from fedjax_lora.models.encoder_config import EncoderConfig
from fedjax_lora.models.families import FAMILIES
from fedjax_lora.models.huggingface import gguf
from fedjax_lora.models.huggingface.decoder_config import decoder_config, unsupported
from fedjax_lora.models.module_types import Config
from fedjax_lora.models.relative_positions import BUCKETS

MOST_LABELS = 10**6
_LAYERS_OF_DECODERS = (*DECODERS, *ENCODERS)
_SUPPORTED = (*FAMILIES, *_LAYERS_OF_DECODERS)
_SHARED_KINDS = {
    "vocab_size": int,
    "max_position_embeddings": int,
    "pad_token_id": int,
    "initializer_range": float,
}
_BERT_KINDS = _SHARED_KINDS | {
    "hidden_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "intermediate_size": int,
    "hidden_act": str,
    "hidden_dropout_prob": float,
    "attention_probs_dropout_prob": float,
    "layer_norm_eps": float,
    "type_vocab_size": int,
}
_DISTILBERT_KINDS = _SHARED_KINDS | {
    "dim": int,
    "n_layers": int,
    "n_heads": int,
    "hidden_dim": int,
    "activation": str,
    "dropout": float,
    "attention_dropout": float,
    "seq_classif_dropout": float,
}
_DISTILBERT_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
}
_KINDS: Mapping[str, Mapping[str, type]] = MappingProxyType(
    {
        "albert": _BERT_KINDS | {"embedding_size": int, "classifier_dropout_prob": float},
        "bert": _BERT_KINDS,
        "camembert": _BERT_KINDS,
        "distilbert": _DISTILBERT_KINDS,
        "electra": _BERT_KINDS | {"embedding_size": int},
        "mpnet": {name: kind for name, kind in _BERT_KINDS.items() if name != "type_vocab_size"},
        "roberta": _BERT_KINDS,
        "xlm-roberta": _BERT_KINDS,
    }
)
"""What is read of the config of each family of encoders."""

_ONLY: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "albert": {"num_hidden_groups": 1, "inner_group_num": 1},
        "deberta-v2": {
            "conv_kernel_size": 0,
            "pooler_dropout": 0,
            "pooler_hidden_act": "gelu",
        },
        "mpnet": {"relative_attention_num_buckets": BUCKETS, "pad_token_id": 1},
    }
)
"""Fields that may have one value alone: with others it is another function."""


def read_config(folder: Path, **options: object) -> Config:
    """Read the config of a checkpoint.

    Args:
      folder: the checkpoint folder with ``config.json``, or a GGUF file.
      **options: fields that replace those of the file (`num_labels`, `dtype`, ...).

    Raises:
      InputError: no readable ``config.json``, or one that describes an unsupported model.
    """
    raw = read_raw(folder)
    where = folder if gguf.is_gguf(folder) else folder / "config.json"
    return from_json(raw, where=str(where), name=folder.name, **options)


def read_raw(folder: Path) -> dict[str, Any]:
    """Read the JSON object in a folder's ``config.json``, unchecked, or that of a GGUF file.

    Raises:
      InputError: no such file, or it contains no JSON object.
    """
    if gguf.is_gguf(folder):
        return gguf.read_config(folder)
    file = folder / "config.json"
    try:
        check_regular_file(file)
    except InputError as error:
        raise InputError(
            f"{folder} has no readable config.json; it is not a checkpoint."
        ) from error
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise InputError(f"{file} must hold one JSON object.")
    return raw


def from_json(
    raw: Mapping[str, Any], *, where: str = "config", name: str = "", **options: object
) -> Config:
    """Make the config that a Hugging Face ``config.json`` describes.

    Args:
      raw: the decoded JSON object; missing keys take the defaults of `transformers`.
      where: the file, for error messages.
      name: the model's name, used if the object names neither type nor architecture.
      **options: fields that replace those of the object.

    Raises:
      InputError: lists all unsupported architectures and features.
    """
    family = _family(raw, where=where, name=name)
    raise_all(f"{where} asks for what is not supported", _unsupported(raw, family))
    if _is_complete(raw, family):
        return EncoderConfig(**{**_fields(_stated(raw, family), family), **options})
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        hf = CONFIG_MAPPING[family](**raw)
        if family in _LAYERS_OF_DECODERS:
            return decoder_config(hf, **options)
    except (StrictDataclassError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where} is not a valid {family} configuration ({reason}).") from error
    return EncoderConfig(**{**_fields(hf, family), **options})


def _is_complete(raw: Mapping[str, Any], family: str) -> bool:
    """Whether all that is read of an encoder's config is stated, and is of the right type.

    Its defaults are then not needed: the classes of `transformers` that hold them import PyTorch
    where that is installed, which takes seconds.
    """
    kinds = _KINDS.get(family, {})
    others = {"classifier_dropout", "num_labels", "id2label", *_KINDS["bert"]} - kinds.keys()
    return (
        bool(kinds)
        and all(type(raw.get(name)) is kind for name, kind in kinds.items())
        and all(raw.get(name) is None for name in others)
    )


def _stated(raw: Mapping[str, Any], family: str) -> SimpleNamespace:
    """Return a complete config with the attributes that the class of `transformers` would have."""
    fields = {"architectures": None, **raw, "classifier_dropout": None, "num_labels": 2}
    if family == "distilbert":
        fields |= {name: raw[own] for name, own in _DISTILBERT_NAMES.items()}
    return SimpleNamespace(**fields)


def _family(raw: Mapping[str, Any], *, where: str, name: str) -> str:
    """Model family by ``model_type``, or in old files by architecture or name."""
    if "model_type" in raw:
        if raw["model_type"] in list(_SUPPORTED):  # a list, because the value may not be hashable
            return raw["model_type"]
        raise InputError(
            f"{where} describes a {raw['model_type']!r} model; supported are "
            f"{', '.join(_SUPPORTED)}."
        )
    hints = f"{raw.get('architectures') or ''} {name}".lower()
    for family in sorted(_SUPPORTED, key=len, reverse=True):  # "bert" is part of every other name
        if family in hints:
            return family
    raise InputError(f"{where} has no model_type; add one of {', '.join(_SUPPORTED)}.")


def _unsupported(raw: Mapping[str, Any], family: str) -> Iterator[str]:
    """Yield features of a config that change the function and that the modules do not have."""
    # Errors of `transformers` about these two do not name them.
    count, names = raw.get("num_labels"), raw.get("id2label")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
        yield f"num_labels {count!r} (only a whole number)"
    if names is not None and not isinstance(names, dict):
        yield f"id2label {names!r} (only an object of names by number)"
    if family in _LAYERS_OF_DECODERS:
        yield from unsupported(raw)
    else:
        yield from _unsupported_encoder(raw, family)


def _unsupported_encoder(raw: Mapping[str, Any], family: str) -> Iterator[str]:
    positions = raw.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        yield f"{positions!r} position embeddings (only 'absolute')"
    for name in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        if raw.get(name):
            yield f"{name} (only plain encoders)"
    if raw.get("pruned_heads"):
        yield "pruned attention heads"
    classes = raw.get("architectures") or []
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        yield f"architectures {classes!r} (only a list of names)"
    labels = raw.get("num_labels")  # `transformers` allocates a dictionary of this size
    if isinstance(labels, int) and labels > MOST_LABELS:
        yield f"{labels} labels (at most {MOST_LABELS})"
    for name, only in _ONLY.get(family, {}).items():
        if raw.get(name, only) != only:
            yield f"{name}={raw[name]} (only {only})"
    if family == "deberta-v2":
        yield from _unsupported_deberta(raw)


def _unsupported_deberta(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield what of a DeBERTa model's config is not that of DeBERTa-v3 (arXiv 2111.09543)."""
    for name in ("relative_attention", "share_att_key"):
        if not raw.get(name):
            yield f"{name}=False (only True, as in DeBERTa-v3)"
    if raw.get("position_biased_input", True):
        yield "position_biased_input=True (only False, as in DeBERTa-v3)"
    terms = raw.get("pos_att_type") or []
    names = terms.split("|") if isinstance(terms, str) else terms
    if not isinstance(names, list) or sorted(map(str, names)) != ["c2p", "p2c"]:
        yield f"pos_att_type={terms!r} (only p2c and c2p, as in DeBERTa-v3)"
    buckets = raw.get("position_buckets", -1)
    if not isinstance(buckets, int) or buckets < 1:
        yield f"position_buckets={buckets!r} (only a number of buckets)"
    for name in ("embedding_size", "pooler_hidden_size"):
        hidden = raw.get("hidden_size")
        if raw.get(name) not in (None, hidden):
            yield f"{name}={raw[name]} in a model of width {hidden}"


def _deberta_fields(hf: Any) -> dict[str, Any]:
    longest = hf.max_relative_positions
    return {
        "distance_buckets": hf.position_buckets,
        "longest_distance": hf.max_position_embeddings if longest < 1 else longest,
        "distance_norm": "layer_norm" in str(getattr(hf, "norm_rel_ebd", "none")).lower(),
    }


def _fields(hf: Any, family: str) -> dict[str, Any]:
    """Fields of an `EncoderConfig` from a `transformers` config object."""
    traits = FAMILIES[family]
    fields = {
        "family": family,
        "vocab_size": hf.vocab_size,
        "embedding_size": hf.embedding_size if traits.factorised else hf.hidden_size,
        "hidden": hf.hidden_size,
        "layers": hf.num_hidden_layers,
        "heads": hf.num_attention_heads,
        "max_positions": hf.max_position_embeddings,
        "type_vocab": hf.type_vocab_size if traits.token_types else 0,
        "pad_token_id": 0 if hf.pad_token_id is None else hf.pad_token_id,
        "initializer_range": hf.initializer_range,
        "num_labels": hf.num_labels,
        "architectures": tuple(hf.architectures or ()),
    }
    if traits.disentangled:
        fields |= _deberta_fields(hf)
    return fields | (_distilbert_fields(hf) if family == "distilbert" else _bert_fields(hf, family))


def _bert_fields(hf: Any, family: str) -> dict[str, Any]:
    names = {"albert": "classifier_dropout_prob", "deberta-v2": "cls_dropout"}
    head = getattr(hf, names.get(family, "classifier_dropout"), None)
    return {
        "intermediate": hf.intermediate_size,
        "layer_norm_eps": hf.layer_norm_eps,
        "activation": hf.hidden_act,
        "hidden_dropout": hf.hidden_dropout_prob,
        "attention_dropout": hf.attention_probs_dropout_prob,
        "head_dropout": hf.hidden_dropout_prob if head is None else head,
    }


def _distilbert_fields(hf: Any) -> dict[str, Any]:
    return {
        "intermediate": hf.hidden_dim,
        "layer_norm_eps": 1e-12,  # fixed in the architecture, not a field of its config
        "activation": hf.activation,
        "hidden_dropout": hf.dropout,
        "attention_dropout": hf.attention_dropout,
        "head_dropout": hf.seq_classif_dropout,
    }
