"""Checkpoints written and read by `transformers`, and read and written back by us."""

import functools
import json
import pathlib
import re
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from experiments.robustness.fuzz import bases, checkpoints
from experiments.robustness.fuzz.case import Answer, Answers, Case, Refused, Subject, Unwritten
from fedjax_lora import interop

ABOUT_OUTPUTS = ("problem_type", "id2label", "added")
"""Options of cases in which probabilities are compared, too; others only compare logits."""

Tensors = dict[str, torch.Tensor]


def write(case: Case, folder: pathlib.Path) -> Subject:
    """Write a checkpoint with its tokenizer.

    Raises:
      Unwritten: `transformers` refuses to make such a model.
    """
    place = folder / "checkpoint"
    try:
        _save(case, place)
    except Exception as error:
        raise Unwritten(f"{type(error).__name__}: {error}") from error
    return Subject(
        theirs=functools.partial(_theirs, case, place),
        ours=functools.partial(_ours, case, place, folder / "merged"),
    )


def task_of(case: Case) -> str:
    """The class with which the checkpoint is used."""
    language = case.options["task"] == "CAUSAL_LM"
    return "CAUSAL_LM" if language else "SEQ_CLS"


def _save(case: Case, folder: pathlib.Path) -> None:
    options, family = case.options, case.options["family"]
    model = bases.CLASSES[options["task"]].from_config(bases.config(family, **_fields(options)))
    bases.randomize(model, case.number)
    model.to(getattr(torch, options.get("dtype", "float32")))
    weights = options.get("weights", "one file")
    size = "8KB" if "shards" in weights else "5GB"
    model.save_pretrained(folder, max_shard_size=size)
    _change_tensors(options, model, folder)
    _change_config(options.get("added", {}), folder / "config.json")
    _tokenizer(options, family).save_pretrained(folder)


def _fields(options: Any) -> dict[str, Any]:
    """Fields of the config, from the options of a case."""
    choices = checkpoints.FIELDS[options["family"]]
    fields: dict[str, Any] = {
        name: options[name] for name in choices if name in options and name != "dtype"
    }
    fields = {name: value for name, value in fields.items() if value != "usual"}
    if options["family"] == "distilbert":
        fields = {"n_layers": 2, "n_heads": 4, "dim": 16, "hidden_dim": 24} | fields
        fields |= dict.fromkeys(
            ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
            "absent",
        )
    if options["family"] == "qwen3":
        fields = {"head_dim": 8} | fields
    if fields.get("id2label"):
        names = checkpoints.NAMES_OF_LABELS[fields["id2label"]]
        fields |= {"id2label": names, "label2id": {name: n for n, name in names.items()}}
    if fields.get("problem_type") == "regression" and "id2label" not in fields:
        fields["num_labels"] = 1
    if fields.get("rope_parameters"):
        fields["rope_parameters"] = dict(checkpoints.ROPE[fields["rope_parameters"]])
        if fields["rope_parameters"]["rope_type"] == "dynamic":
            fields["max_position_embeddings"] = 8  # it stretches longer texts only
    return fields


def _change_config(added: Any, file: pathlib.Path) -> None:
    config = json.loads(file.read_text(encoding="utf-8")) | added
    config = {name: value for name, value in config.items() if value != "absent"}
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _change_tensors(options: Any, model: Any, folder: pathlib.Path) -> None:
    """Store the tensors under other names, in other files or with others beside them."""
    weights, names = options.get("weights", "one file"), options.get("names", "usual")
    head, storage = options.get("head", "usual"), options.get("storage", "as it is")
    if (weights, names, head, storage) == ("one file", "usual", "usual", "as it is"):
        return
    if weights == "shards":
        return
    tensors = load_file(folder / "model.safetensors") if weights != "bin shards" else _all(folder)
    if storage != "as it is":
        tensors = {name: value.to(getattr(torch, storage)) for name, value in tensors.items()}
    tensors = _with_head(tensors, head, model)
    tensors = {_renamed(name, names, model.base_model_prefix): x for name, x in tensors.items()}
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    _write_tensors(tensors, folder, weights)


def _all(folder: pathlib.Path) -> Tensors:
    return {
        name: value
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def _write_tensors(tensors: Tensors, folder: pathlib.Path, weights: str) -> None:
    if weights in ("bin", "both"):
        torch.save(tensors, folder / "pytorch_model.bin")
    if weights == "bin shards":
        files = {"pytorch_model-00001-of-00002.bin": 0, "pytorch_model-00002-of-00002.bin": 1}
        index = {}
        for file, half in files.items():
            part = {name: x for n, (name, x) in enumerate(tensors.items()) if n % 2 == half}
            torch.save(part, folder / file)
            index |= dict.fromkeys(part, file)
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
        (folder / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
    if weights in ("one file", "without metadata", "both"):
        metadata = None if weights == "without metadata" else {"format": "pt"}
        tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata=metadata)


def _with_head(tensors: Tensors, head: str, model: Any) -> Tensors:
    """Add or remove tensors of a head, a pooler or old buffers."""
    prefix = f"{model.base_model_prefix}."
    if head in ("tied copy", "other head"):
        table = model.get_input_embeddings().weight.detach().to(next(iter(tensors.values())).dtype)
        other = table if head == "tied copy" else table.flip(0) * 0.5
        return tensors | {"lm_head.weight": other}
    if head == "no pooler":
        return {name: value for name, value in tensors.items() if ".pooler." not in name}
    if head == "extra buffers":
        return tensors | {f"{prefix}embeddings.position_ids": torch.arange(32)[None]}
    if head == "without head":
        return {name: value for name, value in tensors.items() if name.startswith(prefix)}
    return tensors


def _renamed(name: str, names: str, prefix: str) -> str:
    if names == "usual":
        return name
    if names == "bare":
        return name.removeprefix(f"{prefix}.")
    if names == "gamma":
        name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
        return re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)
    return f"{names}{name}"


def _tokenizer(options: Any, family: str) -> Any:
    """The tokenizer of a case, with the padding token that its config names."""
    kind, side = options.get("tokenizer", "usual"), options.get("padding_side", "right")
    words = bases.tokenizer(family, pad=kind == "usual" or family in bases.ENCODERS, side=side)
    if kind == "pad is end" and family in bases.DECODERS:
        words.pad_token = words.eos_token
    if kind == "pad beyond" and family in bases.DECODERS:
        words.add_special_tokens({"pad_token": "[a new padding token]"})
    if kind == "ends texts" and family in bases.DECODERS:
        words = bases.tokenizer(family, side=side, ends=True)
    return words


def _texts(case: Case) -> tuple[str, ...]:
    return bases.LONG_TEXTS if case.options["family"] in bases.DECODERS else bases.TEXTS


def _theirs(case: Case, folder: pathlib.Path) -> Answer:
    """The logits of `transformers`, and for a classifier what its pipeline makes of them.

    Raises:
      Refused: parameters are newly initialised, other ones each time.
    """
    first, second = (_loaded(case, folder, seed) for seed in (0, 1))
    tokens = bases.batch(folder, _texts(case))
    logits, again = (bases.torch_logits(x, tokens) for x in (first, second))
    if not np.allclose(logits, again, atol=1e-5, equal_nan=True):
        raise Refused("loads, but with newly initialised parameters, other ones each time")
    note = bases.padding_matters(first, tokens, logits)
    return Answer(_described(case, first.config, logits), note)


def _described(case: Case, config: Any, logits: np.ndarray) -> dict[str, Any]:
    """Logits with probabilities or scores and names, as the classification pipeline gives them."""
    if task_of(case) == "CAUSAL_LM":
        return {"logits": logits}
    labels = tuple(config.id2label[n] for n in range(config.num_labels))
    named = {"logits": logits, "labels": labels if len(labels) > 1 else ()}
    if case.options["about"] not in ABOUT_OUTPUTS:
        return named
    if config.num_labels == 1:
        return named | {"outputs": logits.astype(np.float64)}
    scores = torch.tensor(logits, dtype=torch.float64)
    several = config.problem_type == "multi_label_classification"
    return named | {"outputs": (scores.sigmoid() if several else scores.softmax(-1)).numpy()}


def _loaded(case: Case, folder: pathlib.Path, seed: int) -> Any:
    torch.manual_seed(seed)
    return bases.CLASSES[task_of(case)].from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def _ours(case: Case, folder: pathlib.Path, merged: pathlib.Path) -> Answers:
    """Our logits and predictions, and the logits of `transformers` with what we export."""
    model = interop.load_model(folder)
    texts = _texts(case)
    logits = bases.our_logits(model, bases.batch(folder, texts), texts)
    yield "load_model", {"logits": logits} | _predictions(case, model, texts)
    interop.save_merged(merged, model)
    exported = bases.CLASSES[task_of(case)].from_pretrained(merged, attn_implementation="eager")
    logits = bases.torch_logits(exported, bases.batch(merged, texts))
    yield "export to transformers", _described(case, exported.config, logits)


def _predictions(case: Case, model: Any, texts: tuple[str, ...]) -> dict[str, Any]:
    if model.metadata.language:
        return {}
    named = {"labels": model.metadata.classes}
    if case.options["about"] not in ABOUT_OUTPUTS:
        return named
    return named | {"outputs": interop.probabilities(model, list(texts))}
