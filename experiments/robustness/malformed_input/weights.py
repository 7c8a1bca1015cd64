"""Weights: safetensors files, the index of several, and PyTorch's own files."""

import io
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from safetensors.numpy import save

from experiments.robustness.malformed_input import valid
from experiments.robustness.malformed_input.case import (
    LONG_NAME,
    NESTED,
    NOT_A_FILE,
    UNSUPPORTED,
    Case,
    FileChange,
)

FILE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
HUGE = 2**63 - 1


def cases() -> Iterator[Case]:
    """Malformed weights."""
    for name, change in (
        UNSUPPORTED | NOT_A_FILE | _containers() | _headers() | _contents()
    ).items():
        yield Case("safetensors", name, {f"model/{FILE}": change})
    for name, files in _indices().items():
        whole = {f"model/{FILE}": None, **{f"model/{file}": x for file, x in files.items()}}
        yield Case("index of shards", name, whole)
    for name, change in (UNSUPPORTED | NOT_A_FILE | _pickles()).items():
        yield Case("pickled weights", name, {f"model/{FILE}": None, f"model/{PICKLE}": change})


def _with_header(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _parts() -> tuple[dict[str, Any], bytes]:
    """Header and data of the well-formed file."""
    whole = save(valid.tensors())
    size = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def _containers() -> dict[str, bytes]:
    header, data = _parts()
    text = valid.as_json(header)
    whole = _with_header(text, data)
    lengths = (0, 1, 7, len(whole), len(whole) + 1, 10**8 + 1, 2**32, 2**63, 2**64 - 1)
    found = {f"a header of {n} bytes": _with_header(text, data, length=n) for n in lengths}
    found |= {f"{n} bytes long": whole[:n] for n in (1, 7, 8, 9, 100, len(text) + 8)}
    return found | {
        "truncated by a byte": whole[:-1],
        "a trailing byte": whole + b"\0",
        "the data twice": whole + data,
        "a header that is an array": _with_header(b"[]", data),
        "a header that is null": _with_header(b"null", data),
        "a header that is a number": _with_header(b"7", data),
        "a header nested 200,000 deep": _with_header(NESTED, data),
        "a header that is not UTF-8": _with_header(b'{"\xff": {}}', data),
        "a header with an incomplete object": _with_header(text[:-1], data),
        "a header of two objects": _with_header(text + text, data),
        "a header without tensors": _with_header(b"{}"),
        "a header with a comment": _with_header(text + b"// weights", data),
        "a pickle named safetensors": pickle.dumps({"weight": 1}),
    }


def _headers() -> dict[str, bytes]:
    """One entry of the header changed."""
    header, data = _parts()
    begin, end = header[QUERY]["data_offsets"]
    other = next(name for name in header if name not in (QUERY, "__metadata__"))
    values: dict[str, list[Any]] = {
        "dtype": ["F99", "f32", "", "I64", "BOOL", "F8_E4M3", "F64", None, 7, ["F32"], {}],
        "shape": [
            [-32, -32], [32, -1], [32, 31], [32], [1024], [32, 32, 1], [], [0, 32], [2**40, 2**40],
            [HUGE, 2], [1.5, 32], ["32", 32], [[32], 32], [None, 32], None, "32,32", 1024, {},
        ],
        "data_offsets": [
            [end, begin], [begin, end - 1], [begin + 4, end], [begin, end + 4], [begin, HUGE],
            [-1, end], [HUGE, HUGE], [begin, begin], [begin], [begin, end, end], [], None, "0,4096",
            [0.5, 4096], header[other]["data_offsets"], [len(data), len(data) + end - begin],
        ],
    }  # fmt: skip
    found = {}
    for key, wrong in values.items():
        for value in wrong:
            entry = header[QUERY] | {key: value}
            name = f"{key} of {json.dumps(value)}"
            found[name] = _with_header(valid.as_json(header | {QUERY: entry}), data)
        entry = {k: x for k, x in header[QUERY].items() if k != key}
        found[f"no {key}"] = _with_header(valid.as_json(header | {QUERY: entry}), data)
    for value in (None, [], 7, "F32"):
        name = f"a tensor described by {json.dumps(value)}"
        found[name] = _with_header(valid.as_json(header | {QUERY: value}), data)
    for value in ([], 7, {"a": 1}, {"a": {"b": "c"}}):
        name = f"metadata of {json.dumps(value)}"
        found[name] = _with_header(valid.as_json(header | {"__metadata__": value}), data)
    return found


def _contents() -> dict[str, bytes]:
    """Well-formed files that hold the wrong tensors."""

    def changed(change: Callable[[dict[str, np.ndarray]], Any]) -> bytes:
        tensors = valid.tensors()
        change(tensors)
        return save(tensors)

    def add_duplicate(tensors: dict[str, np.ndarray]) -> None:
        tensors[QUERY.removeprefix("bert.")] = tensors[QUERY]

    return {
        "a missing tensor": changed(lambda t: t.pop(QUERY)),
        "an unexpected tensor": changed(lambda t: t.update({"extra": np.zeros(3, np.float32)})),
        "a tensor twice, with and without prefix": changed(add_duplicate),
        "a tensor with an empty name": changed(lambda t: t.update({"": np.zeros(3, np.float32)})),
        "a tensor that is too small": changed(lambda t: t.update({QUERY: t[QUERY][:, :-1].copy()})),
        "a tensor of integers": changed(lambda t: t.update({QUERY: t[QUERY].astype(int)})),
        "a tensor of NaN": changed(lambda t: t[QUERY].fill(np.nan)),
        "a tensor of infinity": changed(lambda t: t[QUERY].fill(np.inf)),
        "names of another model": changed(
            lambda t: [t.update({f"gpt.{name}": t.pop(name)}) for name in list(t)]
        ),
    }


def _indices() -> dict[str, dict[str, FileChange]]:
    whole = save(valid.tensors())
    names = dict.fromkeys(valid.tensors(), "a.safetensors")
    shard: dict[str, FileChange] = {"a.safetensors": whole}

    def index(value: object) -> dict[str, FileChange]:
        return {INDEX: valid.as_json(value), **shard}

    found = {name: {INDEX: change, **shard} for name, change in (UNSUPPORTED | NOT_A_FILE).items()}
    for value in (None, [], 7, "a.safetensors", {}, [["a"]], {"a": 7}, {"a": None}, {"a": ["b"]},
                  {"a": {}}):  # fmt: skip
        found[f"a weight_map of {json.dumps(value)}"] = index({"weight_map": value})
    for file in ("../a.safetensors", "/etc/passwd", "/a.safetensors", "x/a.safetensors", "..",
                 "..\\a.safetensors", "./a.safetensors", "", ".", "a.bin", "a.safetensors\x00",
                 f"{LONG_NAME}.safetensors", "absent.safetensors", "C:\\a.safetensors",
                 "file:///a.safetensors", "https://example.org/a.safetensors"):  # fmt: skip
        shown = file if len(file) < 50 else "5,000 characters"
        found[f"a shard named {shown!r}"] = index({"weight_map": names | {"extra": file}})
    return found | {
        "no weight_map": index({"metadata": {}}),
        "nested 200,000 deep": {INDEX: NESTED, **shard},
        "a tensor that is in no shard": index({"weight_map": names | {"b": "a.safetensors"}}),
        "a tensor in two shards": {
            **index({"weight_map": names | {QUERY: "b.safetensors"}}),
            "b.safetensors": whole,
        },
        "a truncated shard": {**index({"weight_map": names}), "a.safetensors": whole[:-1]},
        "a folder as a shard": {
            **index({"weight_map": names}),
            "a.safetensors": NOT_A_FILE["a folder"],
        },
        "a pipe as a shard": {
            **index({"weight_map": names}),
            "a.safetensors": NOT_A_FILE["a pipe"],
        },
        "larger than any index": {INDEX: b" " * (64 * 2**20 + 1), **shard},
    }


class Code:
    """Runs a function when it is unpickled without restrictions."""

    def __reduce__(self) -> tuple:
        """Call `print`."""
        return (print, ("unpickled",))


def _pickles() -> dict[str, bytes]:
    import torch

    def stored(value: object) -> bytes:
        sink = io.BytesIO()
        torch.save(value, sink)
        return sink.getvalue()

    tensors = {name: torch.tensor(x) for name, x in valid.tensors().items()}
    whole = stored(tensors)
    return {
        "code in a PyTorch file": stored({"weight": Code()}),
        "code in a plain pickle": pickle.dumps(Code()),
        "a list": stored([1, 2]),
        "a number": stored(7),
        "one tensor": stored(torch.zeros(3)),
        "numbers instead of tensors": stored({"weight": 7}),
        "numbers as names": stored({7: torch.zeros(3)}),
        "a sparse tensor": stored(tensors | {QUERY: torch.zeros(32, 32).to_sparse()}),
        "a tensor without data": stored(tensors | {QUERY: torch.zeros(32, 32, device="meta")}),
        "complex numbers": stored(tensors | {QUERY: torch.zeros(32, 32, dtype=torch.complex64)}),
        "a missing tensor": stored({k: x for k, x in tensors.items() if k != QUERY}),
        **{
            f"truncated to {part} %": whole[: len(whole) * part // 100]
            for part in (5, 25, 50, 75, 99)
        },
    }
