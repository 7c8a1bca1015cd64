"""Model cards: ``README.md`` with the metadata of the Hugging Face hub."""

import copy
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from huggingface_hub import EvalResult, ModelCardData

from fedjax_lora import models
from fedjax_lora.core.safe_text import printable
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.data.prompts import AnswerEnd
from fedjax_lora.interop import torch_names
from fedjax_lora.interop.metadata import ModelMetadata
from fedjax_lora.models.encoder_config import EncoderConfig

__all__ = ["ADAPTER", "MERGED", "CardType", "padded_tokenizer", "public_base", "write"]


class CardType(NamedTuple):
    """The parts of a card that depend on the format of the model's files.

    Attributes:
      library: the hub's ``library_name``.
      title: name of the format.
      adapter: whether the files are those of an adapter on a base.
    """

    library: str
    title: str
    adapter: bool


ADAPTER = CardType("peft", "LoRA adapter", adapter=True)
MERGED = CardType("transformers", "merged model", adapter=False)

_MEAN_NOTE = """
**This is not a `...ForSequenceClassification` model.** Its classifier reads the mean of all tokens'
states, and `transformers` has no class that does. The files are those of a model without a head
(`AutoModel`), and `head.safetensors` holds the linear head; the lines below put them together.
"""


def write(
    folder: pathlib.Path,
    metadata: ModelMetadata,
    card_type: CardType,
    *,
    pretrained: models.Pretrained,
    end: AnswerEnd | None = None,
) -> None:
    """Write the model card of a folder.

    Args:
      folder: folder of the model.
      metadata: metadata of the model.
      card_type: `ADAPTER` or `MERGED`.
      pretrained: the model's base.
      end: what ends an answer of a language model.
    """
    code = "\n".join(_code(metadata, card_type, pretrained, end))
    note = _MEAN_NOTE if _is_mean(pretrained) else ""
    weights = _dequantized_from(pretrained)
    body = _body(metadata, card_type, code, note, weights)
    text = f"---\n{_hub_metadata(metadata, card_type)}---\n\n{body}"
    (folder / "README.md").write_text(text, encoding="utf-8")


def padded_tokenizer(pretrained: models.Pretrained) -> Tokenizer:
    """Return the tokenizer with a padding token that the last token of no text is.

    A decoder classifier of `transformers` reads the last token that is not the padding token, so
    the end-of-text token cannot pad if the tokenizer also ends every text with it.

    Args:
      pretrained: a base with a tokenizer.
    """
    tokenizer = copy.deepcopy(cast(Tokenizer, pretrained.tokenizer))
    if models.is_encoder(pretrained.config) or not pretrained.config.num_labels:
        return tokenizer
    last = tokenizer("a", return_attention_mask=False)["input_ids"][-1:]
    if tokenizer.pad_token_id in (None, *last):
        others = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token)
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in others if token}
        tokenizer.pad_token = next((x for x, n in ids.items() if n not in last), None)
    return tokenizer


def _hub_metadata(metadata: ModelMetadata, card_type: CardType) -> str:
    """The YAML block that the hub reads."""
    score = metadata.results.get(metadata.metric)
    task = ("text-classification", "Text Classification")
    if metadata.language:
        task = ("text-generation", "Text Generation")
    results = [] if score is None else [
        EvalResult(
            task_type=task[0],
            task_name=task[1],
            dataset_type=printable(metadata.hub or metadata.task),
            dataset_name=printable(metadata.task),
            metric_type=metadata.metric,
            metric_value=round(score, 4),
        )
    ]  # fmt: skip
    base = public_base(metadata)
    return (
        ModelCardData(
            base_model=base if "/" in base else None,
            datasets=[metadata.hub] if metadata.hub else None,
            eval_results=results or None,
            library_name=card_type.library,
            model_name=f"{printable(_title(metadata))}, {card_type.title}",
            pipeline_tag=task[0],
            tags=["federated-learning", "lora", "fedjax-lora"],
        ).to_yaml()
        + "\n"
    )


def _is_mean(pretrained: models.Pretrained) -> bool:
    """Whether the model is mean-pooled, with the head in a separate file."""
    return not torch_names.has_class(pretrained)


def _dequantized_from(pretrained: models.Pretrained) -> dict[str, str]:
    """The row that names the GGUF file whose matrices the base has; none without one."""
    file = pretrained.folder
    if file is None or not models.is_gguf(file):
        return {}
    return {"weights of the base": _cell(f"dequantized from {file.name}")}


def _body(
    metadata: ModelMetadata, card_type: CardType, code: str, note: str, weights: dict[str, str]
) -> str:
    rows = _rows(metadata) | weights
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# {_cell(_title(metadata))}: {card_type.title}\n{note}\n"
        f"Trained by many clients that keep their data, with fedjax-lora.\n\n"
        f"```python\n{code}\n```\n\n| | |\n|---|---|\n{table}\n\n"
        "The numbers are those of the run's own test examples. Nothing else was evaluated: bias, "
        "other domains and other languages are unknown.\n"
    )


def _code(
    metadata: ModelMetadata,
    card_type: CardType,
    pretrained: models.Pretrained,
    end: AnswerEnd | None,
) -> Iterator[str]:
    """Yield lines of Python that use the model in the folder."""
    mean = _is_mean(pretrained)
    name = "AutoModel" if mean else "AutoModelForSequenceClassification"
    if metadata.language:
        name = "AutoModelForCausalLM"
    yield "import torch"
    if card_type.adapter:
        yield "from peft import PeftModel"
    if mean:
        yield "from safetensors.torch import load_file"
    yield f"from transformers import {name}, AutoTokenizer"
    yield ""
    yield from _loading(metadata, card_type, pretrained, name)
    if mean:
        yield 'head = load_file("./head.safetensors")'
    yield ""
    yield from _generating(end) if metadata.language else _classifying(metadata, pretrained, mean)


def _loading(
    metadata: ModelMetadata, card_type: CardType, pretrained: models.Pretrained, name: str
) -> Iterator[str]:
    """Yield the lines that load tokenizer and model."""
    if not card_type.adapter:
        yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
        yield f'model = {name}.from_pretrained(".").eval()'
        return
    # The head of the base, if it has one, may be that of another task.
    options = [f"num_labels={len(metadata.classes) or 1}", "ignore_mismatched_sizes=True"]
    options = options if name.endswith("SequenceClassification") else []
    options += [f"num_hidden_layers={metadata.layers}"] if metadata.layers else []
    options += ["dtype=torch.float32"]
    public = printable(public_base(metadata))
    file = ""
    if public.endswith(".gguf"):  # its folder is not published
        public, file = ".", f", gguf_file={json.dumps(public, ensure_ascii=False)}"
        options += [file.removeprefix(", ")]
    yield f"base = {json.dumps(public, ensure_ascii=False)}"
    yield f"tokenizer = AutoTokenizer.from_pretrained(base{file})"
    yield f"model = {name}.from_pretrained("
    yield f"    base, {', '.join(options)}"
    yield ")"
    yield 'model = PeftModel.from_pretrained(model, ".").eval()'
    if not models.is_encoder(pretrained.config) and not metadata.language:
        tokenizer = padded_tokenizer(pretrained) if pretrained.tokenizer is not None else None
        if tokenizer is not None and tokenizer.pad_token is not None:
            yield f"tokenizer.pad_token = {json.dumps(tokenizer.pad_token, ensure_ascii=False)}"
            yield "model.config.pad_token_id = tokenizer.pad_token_id"


def _classifying(
    metadata: ModelMetadata, pretrained: models.Pretrained, mean: bool
) -> Iterator[str]:
    """Yield the lines that compute ``logits``."""
    config = pretrained.config
    types = isinstance(config, EncoderConfig) and config.traits.token_types
    yield 'texts = ["a text to classify", "another one"]'
    if metadata.pair:
        yield 'seconds = ["its second text", "the second text of the other"]'
    yield "inputs = tokenizer("
    yield f"    texts,{' seconds,' if metadata.pair else ''}"
    yield (
        f"    padding=True, truncation=True, "
        f"max_length={min(metadata.max_length, config.max_tokens)},"
    )
    yield f'    return_token_type_ids={types}, return_tensors="pt",'
    yield ")"
    yield "with torch.no_grad():"
    if not mean:
        yield "    logits = model(**inputs).logits"
        return
    yield "    hidden = model(**inputs).last_hidden_state"
    yield 'mask = inputs["attention_mask"][..., None]'
    yield "mean = (hidden * mask).sum(1) / mask.sum(1)"
    yield "logits = mean @ " + _head_term(config)


def _head_term(config: Any) -> str:
    if models.is_encoder(config):
        return 'head["classifier.weight"].T + head["classifier.bias"]'
    return 'head["score.weight"].T'


def _generating(end: AnswerEnd | None) -> Iterator[str]:
    """Yield the lines that generate text."""
    yield 'inputs = tokenizer(["A prompt"], return_token_type_ids=False, return_tensors="pt")'
    yield "with torch.no_grad():"
    stops = "" if end is None else _stops(end)
    yield f"    ids = model.generate(**inputs, max_new_tokens=64, do_sample=False{stops})"
    yield "text = tokenizer.batch_decode(ids)"


def _stops(end: AnswerEnd) -> str:
    """Arguments of ``generate`` with which it stops where an answer of the training ended."""
    text = f", stop_strings=[{end.text!r}], tokenizer=tokenizer" if end.text else ""
    return f", eos_token_id={list(end.ids)}{text}"


def _rows(metadata: ModelMetadata) -> dict[str, str]:
    """The rows of the card's table: text by title."""
    outputs = "; ".join(f"{n} {name}" for n, name in enumerate(metadata.classes))
    if metadata.language:
        outputs = "text"
    elif metadata.regression:
        outputs = "one score"
    rows = {"task": metadata.task, "outputs": outputs}
    if metadata.language and metadata.prompt_format in ("auto", "chat"):
        rows["date that a chat template prints"] = metadata.chat_date
    rows |= metadata.training
    rows |= {name: _number(x) for name, x in metadata.results.items()}
    cells = {_cell(name): _cell(text) for name, text in rows.items()}
    return {"base model": _cell(public_base(metadata))} | cells


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _title(metadata: ModelMetadata) -> str:
    return f"{metadata.task or 'Text'} {'language model' if metadata.language else 'classifier'}"


def public_base(metadata: ModelMetadata) -> str:
    """Return the base's hub id or, of a folder, its last part: local paths are not published."""
    base = metadata.base
    if base in models.MODELS:
        return models.MODELS[base].hub
    is_folder = base.count("/") != 1 or base.startswith((".", "/", "~"))
    return pathlib.PurePath(base).name if is_folder else base


def _cell(text: str) -> str:
    """Text in Markdown as it is: no line breaks, and nothing that Markdown or HTML reads."""
    return re.sub(r"([\\`*\[\]<>|#~&!])", r"\\\1", printable(str(text)))
