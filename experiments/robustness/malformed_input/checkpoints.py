"""A checkpoint's ``config.json``."""

import json
from collections.abc import Iterator
from typing import Any

from experiments.robustness.malformed_input import valid
from experiments.robustness.malformed_input.case import (
    LONG_NAME,
    LONG_NUMBER,
    NESTED,
    NOT_A_FILE,
    UNSUPPORTED,
    Case,
)

FILE = "model/config.json"
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
INVALID_SIZES: tuple[Any, ...] = (
    "x",
    "32",
    1.5,
    -1,
    0,
    [],
    {},
    [32],
    3,
    2**20,
    10**9,
    2**63,
    10**30,
)
VALUES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(SIZES, INVALID_SIZES),
    "type_vocab_size": ("x", 1.5, -1, [], 3, 10**9, 10**30),
    "hidden_act": ("swiglu", "", 7, ["gelu"], {"gelu": 1}),
    "layer_norm_eps": ("x", 0.0, -1.0, float("nan"), float("inf"), [], {}),
    "initializer_range": ("x", -1.0, float("nan"), float("inf"), [], {}),
    "model_type": ("t5", "", 7, None, [], {}, ["bert"], "BERT", LONG_NAME),
    "position_embedding_type": ("relative_key", 7, ["absolute"]),
    "is_decoder": (True, "yes", 1),
    "add_cross_attention": (True,),
    "is_encoder_decoder": (True,),
    "pruned_heads": ({"0": [1]},),
    "num_labels": ("x", 1.5, 10**9, 10**30),
    "id2label": ("x", 7, [1, 2]),
    "pad_token_id": ("x", 1.5, [], {}),
    "architectures": (7, "BertModel", {"a": 1}, [7]),
}
"""Invalid values by key."""


def cases() -> Iterator[Case]:
    """Malformed model configs."""
    for name, change in (UNSUPPORTED | NOT_A_FILE).items():
        yield Case("model configs", name, {FILE: change})
    whole = valid.model_config()
    for key, values in VALUES.items():
        for value in values:
            shown = json.dumps(value)
            name = f"{key} of {shown if len(shown) < 40 else f'{len(shown)} characters'}"
            yield Case("model configs", name, {FILE: valid.as_json(whole | {key: value})})
    text = valid.as_json(whole)
    for name, change in {
        "an array": b"[]",
        "null": b"null",
        "a number": b"7",
        "nested 200,000 deep": NESTED,
        "a number of 5,000 digits": text[:-1] + b', "hidden_size": ' + LONG_NUMBER + b"}",
        "truncated": text[: len(text) // 2],
        "a trailing comma": text[:-1] + b",}",
        "single quotes": text.replace(b'"', b"'"),
        "two objects": text + text,
        "no keys": b"{}",
        "larger than any config": text[:-1] + b" " * (64 * 2**20) + b"}",
    }.items():
        yield Case("model configs", name, {FILE: change})
