"""A checkpoint's tokenizer."""

import json
from collections.abc import Iterator
from typing import Any

from experiments.robustness.malformed_input import valid
from experiments.robustness.malformed_input.case import (
    LONG_NUMBER,
    NESTED,
    NOT_A_FILE,
    UNSUPPORTED,
    Case,
)

FILE, CONFIG = "model/tokenizer.json", "model/tokenizer_config.json"
SPECIAL = {
    "content": "[NEW]",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}

VALUES: dict[str, tuple[Any, ...]] = {
    "version": ("9.9", 7, None, {}),
    "model": (
        None, [], {}, "WordLevel", {"type": "Unknown"}, {"type": "WordLevel"},
        {"type": "WordLevel", "vocab": ["a"], "unk_token": "a"},
        {"type": "WordLevel", "vocab": {"a": "0"}, "unk_token": "a"},
        {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"},
        {"type": "WordLevel", "vocab": {"a": 0.5}, "unk_token": "a"},
        {"type": "WordLevel", "vocab": {"a": 2**32}, "unk_token": "a"},
        {"type": "WordLevel", "vocab": {"a": 10**30}, "unk_token": "a"},
        {"type": "WordPiece", "vocab": {"a": 0}},
        {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [7]},
        {"type": "BPE", "vocab": {"a": 0}, "merges": "a b"},
        {"type": "Unigram", "vocab": [["a", "x"]], "unk_id": 0},
        {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7},
    ),
    "added_tokens": (
        7, "[CLS]", {}, [7], [{}], [{"id": 0}], [SPECIAL], [SPECIAL | {"id": -1}],
        [SPECIAL | {"id": "x"}],
    ),
    "normalizer": (7, [], {"type": "Unknown"}, {"type": "Replace", "pattern": {"Regex": "(("}}),
    "pre_tokenizer": (
        7, {"type": "Unknown"}, {},
        {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False},
    ),
    "post_processor": (7, {"type": "Unknown"}, {"type": "TemplateProcessing"}),
    "decoder": (7, {"type": "Unknown"}),
    "truncation": (7, "x"),
    "padding": (7, "x"),
}  # fmt: skip
"""Values that are wrong, by key of ``tokenizer.json``."""

OPTIONS: dict[str, tuple[Any, ...]] = {
    "tokenizer_class": (7, ["a"], {}),
    "added_tokens_decoder": (7, "x", [7], {"x": {}}, {"0": 7}, {"0": {"content": 7}}),
    "pad_token": (7, ["[PAD]"], {"content": 7}),
    "extra_special_tokens": (7, "x"),
}


def cases() -> Iterator[Case]:
    """Generate malformed tokenizers."""
    for name, change in (UNSUPPORTED | NOT_A_FILE).items():
        if name != "no file":
            yield Case("tokenizers", f"tokenizer.json: {name}", {FILE: change})
    yield from _values()
    yield from _structures()
    yield from _options()
    yield Case("tokenizers", "no tokenizer at all", {FILE: None, CONFIG: None})


def _values() -> Iterator[Case]:
    """Fields of ``tokenizer.json`` with wrong values."""
    whole = valid.tokenizer()
    for key, values in VALUES.items():
        for value in values:
            name = f"{key} of {json.dumps(value)}"
            yield Case("tokenizers", name, {FILE: valid.as_json(whole | {key: value})})
        without = {k: x for k, x in whole.items() if k != key}
        if key == "model":
            yield Case("tokenizers", f"no {key}", {FILE: valid.as_json(without)})


def _structures() -> Iterator[Case]:
    """``tokenizer.json`` as something else than an object, and with ids beyond the model."""
    whole = valid.tokenizer()
    text = valid.as_json(whole)
    for name, change in {
        "an array": b"[]",
        "null": b"null",
        "nested 200,000 deep": NESTED,
        "a number of 5,000 digits": text[:-1] + b', "x": ' + LONG_NUMBER + b"}",
        "truncated": text[: len(text) // 2],
    }.items():
        yield Case("tokenizers", f"tokenizer.json: {name}", {FILE: change})
    beyond = {"type": "WordLevel", "unk_token": "[UNK]"}
    ids = dict(zip(valid.WORDS, (0, 1, 2, 3, *range(100, 200)), strict=False))
    far = valid.as_json(whole | {"model": beyond | {"vocab": ids}})
    yield Case("tokenizers", "ids beyond the embedding table", {FILE: far})


def _options() -> Iterator[Case]:
    """Malformed ``tokenizer_config.json``."""
    options = valid.tokenizer_config()
    for key, values in OPTIONS.items():
        for value in values:
            name = f"{key} of {json.dumps(value)}"
            yield Case("tokenizers", name, {CONFIG: valid.as_json(options | {key: value})})
    for name, change in UNSUPPORTED.items():
        yield Case("tokenizers", f"tokenizer_config.json: {name}", {CONFIG: change})
    plain = {k: x for k, x in options.items() if k != "pad_token"}
    yield Case("tokenizers", "no padding token", {CONFIG: valid.as_json(plain)})
