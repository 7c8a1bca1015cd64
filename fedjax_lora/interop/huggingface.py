"""Writing a trained model as a merged Hugging Face checkpoint that needs no PEFT."""

import json
import pathlib
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from fedjax_lora import models
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.untrusted_files import read_json
from fedjax_lora.interop import model_card, torch_names
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.interop.peft import save_head
from fedjax_lora.interop.predict import answer_end
from fedjax_lora.interop.trained_model import TrainedModel

__all__ = ["save_merged"]

_GENERATION = "generation_config.json"
_OTHER_CLASSES = MappingProxyType(
    {"GPT2ForCausalLM": "GPT2LMHeadModel", "Gemma3TextForCausalLM": "Gemma3ForCausalLM"}
)
"""Classes of `transformers` whose names do not follow from the family and the task."""

# Fields of the base's config that must not be copied: code to run, paths and storage types.
_DROPPED_FIELDS = (
    "auto_map",
    "_name_or_path",
    "name_or_path",
    "architectures",
    "torch_dtype",
    "dtype",
)


def save_merged(
    folder: str | pathlib.Path,
    model: TrainedModel,
    *,
    shard_size: int | str = "5GB",
) -> None:
    """Write a model with merged weights as a checkpoint that `transformers` loads without PEFT.

    The folder holds weights, config, tokenizer, ``fedjax_lora.json`` and a model card.
    ``AutoModelForSequenceClassification.from_pretrained(folder)`` or, for a language model,
    ``AutoModelForCausalLM.from_pretrained(folder)`` computes the same outputs as the model.

    `transformers` has no class for mean pooling. The checkpoint of a mean-pooled model is one for
    ``AutoModel`` with the head in ``head.safetensors``; the model card shows how to use both.

    Args:
      folder: created if it does not exist.
      model: the model, whose base was loaded from a checkpoint.
      shard_size: largest size of a file of weights, in bytes or with a unit as in ``"500MB"``.

    Raises:
      InputError: `shard_size` is not a size, or the base is not from a checkpoint.
    """
    path, pretrained = pathlib.Path(folder), model.pretrained
    if pretrained.folder is None:
        raise InputError(
            f"The base {model.metadata.base!r} was not loaded from a checkpoint, so there is no "
            "config.json to merge into; save an adapter."
        )
    with_class = torch_names.has_class(pretrained)
    params = model.merged_params
    # Without the head: a file that looks like a complete classifier would compute something else.
    kept = params if with_class else {k: part for k, part in params.items() if k != "head"}
    tensors = torch_names.tensors(pretrained, kept)
    shards = _plan_shards(tensors, shard_size)
    path.mkdir(parents=True, exist_ok=True)
    _write_weights(path, tensors, shards)
    _write_json(path / "config.json", _config(pretrained, model.metadata))
    if pretrained.tokenizer is not None:
        model_card.padded_tokenizer(pretrained).save_pretrained(path)
    end = answer_end(model) if model.metadata.language else None
    if end is not None:
        _write_json(path / _GENERATION, _generation_config(pretrained, end.ids))
    if not with_class:
        save_head(path, torch_names.unstored(pretrained, params["head"]))
    model.metadata.write(path)
    model_card.write(path, model.metadata, model_card.MERGED, pretrained=pretrained, end=end)


def _plan_shards(tensors: dict[str, np.ndarray], shard_size: int | str) -> StateDictSplit:
    """Assign tensors to files of at most this size.

    Raises:
      InputError: `shard_size` is not a size.
    """
    try:
        return split_state_dict_into_shards_factory(
            tensors,
            get_storage_size=lambda x: x.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=shard_size,
        )
    except ValueError as error:
        raise InputError(
            f"Shard size {shard_size!r} is not a size such as 500MB or 5GB."
        ) from error


def _write_weights(
    path: pathlib.Path, tensors: dict[str, np.ndarray], shards: StateDictSplit
) -> None:
    """Write ``model.safetensors``, or several files and their index."""
    for file, names in shards.filename_to_tensors.items():
        part = {name: np.ascontiguousarray(tensors[name]) for name in names}
        save_file(part, path / file, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        _write_json(path / "model.safetensors.index.json", index)


def _config(pretrained: models.Pretrained, metadata: ModelMetadata) -> dict[str, Any]:
    """The base's ``config.json`` with the layers, labels and class of this model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    base = models.read_raw(cast(pathlib.Path, pretrained.folder))  # checked by `save_merged`
    config = CONFIG_MAPPING[pretrained.config.family](
        **{name: value for name, value in base.items() if name not in _DROPPED_FIELDS}
    )
    config.num_hidden_layers = pretrained.config.layers
    if not models.is_encoder(pretrained.config):
        _set_decoder_fields(config, pretrained)
    if not metadata.language:
        config.id2label = dict(enumerate(metadata.classes or ["score"]))
        config.label2id = {name: n for n, name in config.id2label.items()}
        config.problem_type = "regression" if metadata.regression else "single_label_classification"
    config.dtype = "float32"
    family = type(config).__name__.removesuffix("Config")
    suffix = _class_suffix(pretrained)
    name = f"{family}{suffix}"
    config.architectures = [_OTHER_CLASSES.get(name, name)]
    return json.loads(config.to_json_string(use_diff=True))


def _set_decoder_fields(config: Any, pretrained: models.Pretrained) -> None:
    """Set the fields in which a decoder may differ from the base's ``config.json``."""
    if not pretrained.config.num_labels:
        config.tie_word_embeddings = getattr(pretrained.config, "tied", False)
    elif pretrained.tokenizer is not None:
        # The class tells the last token of a text from padding by this id.
        config.pad_token_id = model_card.padded_tokenizer(pretrained).pad_token_id
    for name in ("layer_types", "no_rope_layers"):
        if getattr(config, name, None):
            setattr(config, name, getattr(config, name)[: pretrained.config.layers])


def _generation_config(pretrained: models.Pretrained, stop: Sequence[int]) -> dict[str, Any]:
    """The base's ``generation_config.json`` with the tokens that end an answer of this model."""
    file = cast(pathlib.Path, pretrained.folder) / _GENERATION
    values = read_json(file) if file.is_file() else {}
    values.pop("_from_model_config", None)  # or transformers would make it anew
    return values | {"eos_token_id": list(stop)}


def _class_suffix(pretrained: models.Pretrained) -> str:
    """The part after the family's name in the model's class in `transformers`."""
    if not torch_names.has_class(pretrained):
        return "Model"
    return "ForSequenceClassification" if pretrained.config.num_labels else "ForCausalLM"


def _write_json(file: pathlib.Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
