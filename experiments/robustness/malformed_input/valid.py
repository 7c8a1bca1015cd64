"""A complete, well-formed run on a very small model, for every case to change one thing of."""

import functools
import json
import pathlib
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from safetensors.numpy import save

from fedjax_lora import models
from fedjax_lora.core import trees

TEXTS = [f"some words number {n}" for n in range(24)]
LABELS = [("yes", "no")[n % 2] for n in range(24)]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "some", "words", "number", *map(str, range(24))]
SETTINGS = {
    "data": {"max_length": 8},
    "federation": {"clients": 4, "cohort": 2, "rounds": 1, "ranks": "fixed(rank=2)"},
}


def write(root: pathlib.Path) -> None:
    """Everything that ``fedjax-lora run --config=ROOT/config.json`` reads."""
    (root / "data").mkdir(parents=True)
    (root / "model").mkdir()
    (root / "adapter").mkdir()
    for name, content in files().items():
        (root / name).write_bytes(content)


def settings(root: pathlib.Path) -> dict[str, dict]:
    """The run's config, with the paths of its folder."""
    return SETTINGS | {
        "data": SETTINGS["data"] | {"task": task("train.csv"), "data_dir": str(root / "data")},
        "model": {"model": str(root / "model")},
        "lora": {"adapter": str(root / "adapter")},
    }


def task(name: str, **options: str) -> str:
    """The spec of a file as its own training and test set."""
    given = {"train": name, "test": name} | options
    return f"file({', '.join(f'{key}={value!r}' for key, value in given.items())})"


@functools.cache
def files() -> dict[str, bytes]:
    """All files but the config, by path."""
    return {
        "data/train.csv": csv(),
        "data/train.tsv": csv().replace(b",", b"\t"),
        "data/train.jsonl": jsonl(),
        "data/train.parquet": parquet({"text": TEXTS, "label": LABELS}),
        "model/config.json": as_json(model_config()),
        "model/model.safetensors": save(tensors()),
        "model/tokenizer.json": as_json(tokenizer()),
        "model/tokenizer_config.json": as_json(tokenizer_config()),
        "adapter/adapter_config.json": as_json(adapter_config()),
        "adapter/adapter_model.safetensors": save(factors()),
    }


def csv() -> bytes:
    """The texts and labels with a header."""
    rows = (f"{text},{label}" for text, label in zip(TEXTS, LABELS, strict=True))
    return "\n".join(["text,label", *rows, ""]).encode()


def jsonl() -> bytes:
    """One object per line."""
    pairs = zip(TEXTS, LABELS, strict=True)
    return b"".join(as_json({"text": text, "label": label}) + b"\n" for text, label in pairs)


def parquet(columns: dict[str, list]) -> bytes:
    """A table as a Parquet file."""
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def as_json(value: object) -> bytes:
    """One JSON text."""
    return json.dumps(value).encode()


def model_config() -> dict[str, object]:
    """The config of the very small model as `transformers` writes it."""
    small: Any = models.tiny(vocab_size=32).config
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": small.vocab_size,
        "hidden_size": small.hidden,
        "num_hidden_layers": small.layers,
        "num_attention_heads": small.heads,
        "intermediate_size": small.intermediate,
        "max_position_embeddings": small.max_positions,
        "type_vocab_size": small.type_vocab,
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }


def tensors() -> dict[str, np.ndarray]:
    """The encoder's parameters by Hugging Face name, as PyTorch lays them out."""
    return {name: value.copy() for name, value in _tensors().items()}


@functools.cache
def _tensors() -> dict[str, np.ndarray]:
    small = models.tiny(vocab_size=32)
    found = {}
    for path, value in trees.flat(small.params).items():
        if path.startswith("head/"):
            continue
        stacked = models.is_stacked(small.config, path)
        for layer in range(small.config.layers) if stacked else [None]:
            one = np.asarray(value if layer is None else value[layer])
            name = models.hf_name(small.config, path, layer)
            found[name] = np.ascontiguousarray(one.T if path.endswith("kernel") else one)
    return found


def adapter_config() -> dict[str, object]:
    """PEFT's config of an adapter of rank 2 on queries and values."""
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "model",
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "target_modules": ["query", "value"],
        "bias": "none",
    }


def factors() -> dict[str, np.ndarray]:
    """The adapter's tensors by name."""
    small, rng = models.tiny(vocab_size=32).config, np.random.default_rng(0)
    shapes = {"lora_A": (2, small.hidden), "lora_B": (small.hidden, 2)}
    return {
        f"base_model.model.bert.encoder.layer.{layer}.attention.self.{part}.{factor}.weight":
            rng.normal(size=shape).astype(np.float32)
        for layer in range(small.layers)
        for part in ("query", "value")
        for factor, shape in shapes.items()
    }  # fmt: skip


def tokenizer() -> dict[str, object]:
    """A fast tokenizer that splits at white space."""
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": n, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for n, word in enumerate(WORDS[:4])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}},
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(WORDS)},
                  "unk_token": "[UNK]"},
    }  # fmt: skip


def tokenizer_config() -> dict[str, object]:
    """The tokenizer's options, as `transformers` writes them."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
    }
