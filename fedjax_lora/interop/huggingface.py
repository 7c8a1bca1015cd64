"""A fitted model as a plain Hugging Face checkpoint: weights, config, tokenizer, model card."""

import json
import pathlib
from typing import Any

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from fedjax_lora import models
from fedjax_lora.core.errors import InputError
from fedjax_lora.interop import model_card, torch_names
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.interop.peft import save_head
from fedjax_lora.interop.trained_model import TrainedModel

# What a stranger's config may say and a new checkpoint must not repeat.
_NOT_KEPT = ("auto_map", "_name_or_path", "name_or_path", "architectures", "torch_dtype", "dtype")


def save_merged(
    folder: str | pathlib.Path,
    fitted: TrainedModel,
    about: ModelMetadata,
    *,
    shard_size: int | str = "5GB",
) -> None:
    """Write a checkpoint that `transformers` loads without PEFT.

    ``AutoModelForSequenceClassification.from_pretrained(folder)`` computes what the fitted model
    computes. With mean pooling, for which `transformers` has no class, the checkpoint is one for
    ``AutoModel`` and the head is in ``head.safetensors`` (a complete-looking classifier would
    compute something else); the model card has the lines that put them together.

    Args:
      folder: made if it does not exist.
      fitted: the model; its base was loaded from a checkpoint.
      about: what is said of it.
      shard_size: a file of weights is at most this large, in bytes or as ``"500MB"``.

    Raises:
      InputError: a shard size that cannot be read.
    """
    path, model = pathlib.Path(folder), fitted.model
    with_class = torch_names.has_class(model)
    params = fitted.merged
    kept = params if with_class else {k: part for k, part in params.items() if k != "head"}
    tensors = torch_names.tensors(model, kept)
    try:
        plan = split_state_dict_into_shards_factory(
            tensors,
            get_storage_size=lambda x: x.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=shard_size,
        )
    except ValueError as error:
        raise InputError(
            f"Shard size {shard_size!r} is not a size such as 500MB or 5GB."
        ) from error
    path.mkdir(parents=True, exist_ok=True)
    for file, its_names in plan.filename_to_tensors.items():
        part = {name: np.ascontiguousarray(tensors[name]) for name in its_names}
        save_file(part, path / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(path / "model.safetensors.index.json", index)
    _write_json(path / "config.json", _config(model, about))
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(path)
    if not with_class:
        save_head(path, torch_names.unstored(model, params["head"]))
    about.write(path)
    model_card.write(path, about, model_card.MERGED, mean=not with_class)


def _config(model: models.Pretrained, about: ModelMetadata) -> dict[str, Any]:
    """The base's ``config.json`` with what is other here."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert model.folder is not None
    raw = {k: x for k, x in models.read_raw(model.folder).items() if k not in _NOT_KEPT}
    config = CONFIG_MAPPING[model.config.family](**raw)
    config.num_hidden_layers = model.config.layers
    if not about.language:
        config.id2label = dict(enumerate(about.classes or ["score"]))
        config.label2id = {name: n for n, name in config.id2label.items()}
        config.problem_type = "regression" if about.regression else "single_label_classification"
    config.dtype = "float32"
    family = type(config).__name__.removesuffix("Config")
    config.architectures = [f"{family}{_class_of(model)}"]
    return json.loads(config.to_json_string(use_diff=True))


def _class_of(model: models.Pretrained) -> str:
    """The last words of the class that the model is in `transformers`."""
    if not torch_names.has_class(model):
        return "Model"
    return "ForSequenceClassification" if model.config.num_labels else "ForCausalLM"


def _write_json(file: pathlib.Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
