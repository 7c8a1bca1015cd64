"""Model cards: ``README.md`` with the metadata of the Hugging Face hub."""

import pathlib
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from fedjax_lora import models
from fedjax_lora.data.prompts import AnswerEnd
from fedjax_lora.interop.metadata import ModelMetadata

__all__ = ["ADAPTER", "MERGED", "CardType", "write"]


class CardType(NamedTuple):
    """The parts of a card that depend on the format of the model's files.

    Attributes:
      library: the hub's ``library_name``.
      title: name of the format.
      classify: Python code that computes ``logits`` with a classifier.
      classify_mean_pooled: the same for a mean-pooled encoder with a separate head.
      generate: Python code that generates text with a language model.
    """

    library: str
    title: str
    classify: str
    classify_mean_pooled: str
    generate: str


_TEXTS = """
texts = ["a text to classify"]
inputs = tokenizer(
    texts, padding=True, truncation=True, max_length={max_length}, return_tensors="pt"
)
with torch.no_grad():
"""
_LOGITS = _TEXTS + "    logits = model(**inputs).logits\n"
_MEAN = (
    _TEXTS
    + """    hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    logits = mean @ head["classifier.weight"].T + head["classifier.bias"]
"""
)

_GENERATE = """
inputs = tokenizer(["A prompt"], return_tensors="pt")
with torch.no_grad():
    output = model.generate(**inputs, max_new_tokens=64{stops})
    text = tokenizer.batch_decode(output)
"""

ADAPTER = CardType(
    "peft",
    "LoRA adapter",
    """import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base = "{base}"
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForSequenceClassification.from_pretrained(base, {options})
model = PeftModel.from_pretrained(model, "{folder}").eval()
"""
    + _LOGITS,
    """import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

base = "{base}"
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModel.from_pretrained(base{layers})
model = PeftModel.from_pretrained(model, "{folder}").eval()
head = load_file("{folder}/head.safetensors")
"""
    + _MEAN,
    """import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = "{base}"
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base{layers})
model = PeftModel.from_pretrained(model, "{folder}").eval()
"""
    + _GENERATE,
)
MERGED = CardType(
    "transformers",
    "merged model",
    """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForSequenceClassification.from_pretrained("{folder}").eval()
"""
    + _LOGITS,
    """import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModel.from_pretrained("{folder}").eval()
head = load_file("{folder}/head.safetensors")
"""
    + _MEAN,
    """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}").eval()
"""
    + _GENERATE,
)
_MEAN_NOTE = """
**This is not a `...ForSequenceClassification` model.** Its classifier reads the mean of all tokens'
states, and `transformers` has no class that does. The files are those of an encoder
(`AutoModel`), and `head.safetensors` holds the linear head; the lines below put them together.
"""


def write(
    folder: pathlib.Path,
    metadata: ModelMetadata,
    card_type: CardType,
    *,
    mean: bool,
    end: AnswerEnd | None = None,
) -> None:
    """Write the model card of a folder.

    Args:
      folder: folder of the model.
      metadata: metadata of the model.
      card_type: `ADAPTER` or `MERGED`.
      mean: whether the model is mean-pooled, with the head in a separate file.
      end: what ends an answer of a language model.
    """
    code = _code(metadata, card_type, mean, end)
    text = (
        f"---\n{_hub_metadata(metadata, card_type)}---\n\n{_body(metadata, card_type, code, mean)}"
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


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
            dataset_type=metadata.hub or metadata.task,
            dataset_name=metadata.task,
            metric_type=metadata.metric,
            metric_value=round(score, 4),
        )
    ]  # fmt: skip
    base = _public_base_name(metadata)
    return (
        ModelCardData(
            base_model=base if "/" in base else None,
            datasets=[metadata.hub] if metadata.hub else None,
            eval_results=results or None,
            library_name=card_type.library,
            model_name=f"{_title(metadata)}, {card_type.title}",
            pipeline_tag=task[0],
            tags=["federated-learning", "lora", "fedjax-lora"],
        ).to_yaml()
        + "\n"
    )


def _body(metadata: ModelMetadata, card_type: CardType, code: str, mean: bool) -> str:
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in _rows(metadata).items())
    return (
        f"# {_title(metadata)}: {card_type.title}\n{_MEAN_NOTE if mean else ''}\n"
        f"Trained by many clients that keep their data, with fedjax-lora.\n\n"
        f"```python\n{code}```\n\n| | |\n|---|---|\n{table}\n\n"
        "The numbers are those of the run's own test examples. Nothing else was evaluated: bias, "
        "other domains and other languages are unknown.\n"
    )


def _code(metadata: ModelMetadata, card_type: CardType, mean: bool, end: AnswerEnd | None) -> str:
    """Python code that uses the model in the folder."""
    layers = f", num_hidden_layers={metadata.layers}" if metadata.layers else ""
    code = card_type.classify_mean_pooled if mean else card_type.classify
    if metadata.language:
        code = card_type.generate
    return code.format(
        base=_public_base_name(metadata),
        folder=".",
        max_length=metadata.max_length,
        layers=layers,
        stops="" if end is None else _stops(end),
        options=f"num_labels={len(metadata.classes) or 1}{layers}",
    )


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
    rows = {
        "base model": f"`{_public_base_name(metadata)}`",
        "task": metadata.task,
        "outputs": outputs,
    }
    if metadata.language and metadata.prompt_format in ("auto", "chat"):
        rows["date that a chat template prints"] = metadata.chat_date
    return rows | metadata.training | {n: _number(x) for n, x in metadata.results.items()}


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _title(metadata: ModelMetadata) -> str:
    return f"{metadata.task or 'Text'} {'language model' if metadata.language else 'classifier'}"


def _public_base_name(metadata: ModelMetadata) -> str:
    """The base's hub id or, of a folder, its last part: local paths are not published."""
    base = metadata.base
    if base in models.MODELS:
        return models.MODELS[base].hub
    is_folder = base.count("/") != 1 or base.startswith((".", "/", "~"))
    return pathlib.PurePath(base).name if is_folder else base


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
