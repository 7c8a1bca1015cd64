"""Model cards: ``README.md`` with the hub's metadata, for people and for the hub."""

import pathlib
from typing import NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from fedjax_lora import models
from fedjax_lora.interop.metadata import ModelMetadata


class CardType(NamedTuple):
    """What a card describes."""

    library: str
    title: str
    use: str  # Python: ends with `logits`
    mean: str  # the same for a mean-pooled encoder, which has its own head
    write: str  # Python that lets a language model write


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

_WRITE = """
inputs = tokenizer(["A prompt"], return_tensors="pt")
with torch.no_grad():
    text = tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=64))
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
    + _WRITE,
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
    + _WRITE,
)
_MEAN_NOTE = """
**This is not a `...ForSequenceClassification` model.** Its classifier reads the mean of all tokens'
states, and `transformers` has no class that does. The files are those of an encoder
(`AutoModel`), and `head.safetensors` holds the linear head; the lines below put them together.
"""


def write(folder: pathlib.Path, about: ModelMetadata, kind: CardType, *, mean: bool) -> None:
    """Write the card of a folder.

    Args:
      folder: where the model is.
      about: what is said of it.
      kind: `ADAPTER` or `MERGED`.
      mean: whether the encoder is mean-pooled, with the head in a file of its own.
    """
    text = f"---\n{_metadata(about, kind)}---\n\n{_body(about, kind, mean)}"
    (folder / "README.md").write_text(text, encoding="utf-8")


def _metadata(about: ModelMetadata, kind: CardType) -> str:
    known = about.results.get(about.metric)
    task = ("text-classification", "Text Classification")
    if about.language:
        task = ("text-generation", "Text Generation")
    results = [] if known is None else [
        EvalResult(
            task_type=task[0],
            task_name=task[1],
            dataset_type=about.hub or about.task,
            dataset_name=about.task,
            metric_type=about.metric,
            metric_value=round(known, 4),
        )
    ]  # fmt: skip
    base = _base(about)
    return (
        ModelCardData(
            base_model=base if "/" in base else None,
            datasets=[about.hub] if about.hub else None,
            eval_results=results or None,
            library_name=kind.library,
            model_name=f"{_what(about)}, {kind.title}",
            pipeline_tag=task[0],
            tags=["federated-learning", "lora", "fedjax-lora"],
        ).to_yaml()
        + "\n"
    )


def _body(about: ModelMetadata, kind: CardType, mean: bool) -> str:
    fields = {
        "base": _base(about),
        "folder": ".",
        "max_length": about.max_length,
        "layers": f", num_hidden_layers={about.layers}" if about.layers else "",
        "options": f"num_labels={len(about.classes) or 1}"
        + (f", num_hidden_layers={about.layers}" if about.layers else ""),
    }
    outputs = "one score" if about.regression else "; ".join(
        f"{n} {name}" for n, name in enumerate(about.classes)
    )  # fmt: skip
    rows = {"base model": f"`{_base(about)}`", "task": about.task}
    rows |= {"outputs": "text" if about.language else outputs}
    rows |= about.training | {name: _score(x) for name, x in about.results.items()}
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    code = kind.write if about.language else kind.mean if mean else kind.use
    code = code.format(**fields)
    return (
        f"# {_what(about)}: {kind.title}\n{_MEAN_NOTE if mean else ''}\n"
        f"Trained by many clients that keep their data, with fedjax-lora.\n\n"
        f"```python\n{code}```\n\n| | |\n|---|---|\n{table}\n\n"
        "The numbers are those of the run's own test examples. Nothing else was evaluated: bias, "
        "other domains and other languages are unknown.\n"
    )


def _score(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _what(about: ModelMetadata) -> str:
    return f"{about.task or 'Text'} {'language model' if about.language else 'classifier'}"


def _base(about: ModelMetadata) -> str:
    """The base's public name: of a folder only its name, not where it is."""
    if about.base in models.MODELS:
        return models.MODELS[about.base].hub
    is_folder = about.base.count("/") != 1 or about.base.startswith((".", "/", "~"))
    return pathlib.PurePath(about.base).name if is_folder else about.base


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
