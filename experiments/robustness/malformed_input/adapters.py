"""PEFT adapters that a run starts from: config and factors."""

import pickle
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from safetensors.numpy import save

from experiments.robustness.malformed_input import valid
from experiments.robustness.malformed_input.case import (
    LONG_NAME,
    LONG_NUMBER,
    NESTED,
    NOT_A_FILE,
    UNSUPPORTED,
    Case,
    FileChange,
)

CONFIG, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
FIRST = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_{}.weight"


def cases() -> Iterator[Case]:
    """Malformed adapters."""
    for name, change in (UNSUPPORTED | NOT_A_FILE | _texts()).items():
        yield Case("PEFT config", name, {CONFIG: change})
    for name, values in _values():
        yield Case(
            "PEFT config",
            name,
            {CONFIG: valid.as_json(valid.adapter_config() | values)},
        )
    for name in ("peft_type", "r"):
        left = {key: value for key, value in valid.adapter_config().items() if key != name}
        yield Case("PEFT config", f"without {name}", {CONFIG: valid.as_json(left)})
    for name, change in (UNSUPPORTED | NOT_A_FILE | _files()).items():
        yield Case("PEFT factors", name, {WEIGHTS: change})
    for name, tensors in _tensors():
        yield Case("PEFT factors", name, {WEIGHTS: save(tensors)})
    bomb = pickle.dumps({"weight": 1})
    yield Case(
        "PEFT factors",
        "a pickle instead of safetensors",
        {WEIGHTS: None, "adapter/adapter_model.bin": bomb},
    )


def _texts() -> dict[str, FileChange]:
    whole = valid.as_json(valid.adapter_config())
    return {
        "a truncated config": whole[: len(whole) // 2],
        "two configs": whole + whole,
        "an array": b"[]",
        "null": b"null",
        "nested 200,000 deep": NESTED,
        "a rank of 5,000 digits": b'{"peft_type": "LORA", "r": ' + LONG_NUMBER + b"}",
    }


def _values() -> Iterator[tuple[str, dict[str, Any]]]:
    """One field, or two that do not go together, changed."""
    invalid: list[Any] = [None, -1, 0, True, "8", [8], {"r": 8}, 1e999, float("nan")]
    for field in ("r", "lora_alpha"):
        yield from ((f"{field} = {value!r}", {field: value}) for value in invalid)
    for kind in ("IA3", "lora", "", None, 1, ["LORA"], LONG_NAME):
        yield f"peft_type = {str(kind)[:20]!r}", {"peft_type": kind}
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in (["query"], "query", {"query": "8"}, {"query": -1}, {r"(a)\1": 1}, {"(": 1}):
            yield f"{field} = {pattern!r}", {field: pattern}
    yield "a rank that the factors do not have", {"r": 2**63}
    for field in ("use_dora", "lora_bias"):
        yield f"{field}", {field: True}
    yield "bias = 'all'", {"bias": "all"}
    yield "layer_replication", {"layer_replication": [[0, 2]]}


def _files() -> dict[str, FileChange]:
    whole = save(valid.factors())
    return {
        "truncated in the header": whole[:40],
        "truncated in the data": whole[:-8],
        "a header of 2**62 bytes": struct.pack("<Q", 1 << 62) + whole[8:],
        "a header nested 200,000 deep": struct.pack("<Q", len(NESTED)) + NESTED,
        "a trailing byte": whole + b"\0",
    }


def _tensors() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    whole = valid.factors()
    one, other = FIRST.format("A"), FIRST.format("B")
    hidden = whole[one].shape[1]
    yield "no tensors", {}
    yield "only one of two factors", {k: x for k, x in whole.items() if k != other}
    yield "factors of another matrix", {k.replace("query", "output"): x for k, x in whole.items()}
    yield (
        "factors of a layer that the model has not",
        {k.replace("layer.1", "layer.7"): x for k, x in whole.items()},
    )
    yield (
        "a name with a path",
        whole | {"base_model.model.../../etc/passwd.lora_A.weight": whole[one]},
    )
    yield "an additional tensor", whole | {"base_model.model.something.weight": whole[one]}
    for name, array in {
        "another rank": np.zeros((5, hidden), np.float32),
        "another width": np.zeros((2, hidden + 1), np.float32),
        "three axes": np.zeros((2, hidden, 1), np.float32),
        "no rows": np.zeros((0, hidden), np.float32),
        "no axes": np.zeros((), np.float32),
        "an integer dtype": np.zeros((2, hidden), np.int64),
        "NaN": np.full((2, hidden), np.nan, np.float32),
        "infinity": np.full((2, hidden), np.inf, np.float32),
    }.items():
        yield f"a factor with {name}", whole | {one: array}
