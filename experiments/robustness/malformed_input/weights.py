"""Weights: safetensors files, the index of several, and PyTorch's own files."""

import io
import json
import pickle
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from safetensors.numpy import save

from experiments.robustness.malformed_input import good
from experiments.robustness.malformed_input.case import (
    DEEP,
    GARBAGE,
    IN_PLACE,
    LONG_NAME,
    Case,
    Spoil,
)

FILE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
HUGE = 2**63 - 1


def cases() -> Iterator[Case]:
    """Broken weights."""
    for name, spoil in (GARBAGE | IN_PLACE | _containers() | _headers() | _contents()).items():
        yield Case("safetensors", name, {f"model/{FILE}": spoil})
    for name, files in _indices().items():
        whole = {f"model/{FILE}": None, **{f"model/{file}": x for file, x in files.items()}}
        yield Case("index of shards", name, whole)
    for name, spoil in (GARBAGE | IN_PLACE | _pickles()).items():
        yield Case("pickled weights", name, {f"model/{FILE}": None, f"model/{PICKLE}": spoil})


def _packed(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _parts() -> tuple[dict[str, Any], bytes]:
    """Header and data of the well-formed file."""
    whole = save(good.tensors())
    size = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def _containers() -> dict[str, bytes]:
    header, data = _parts()
    text = good.as_json(header)
    whole = _packed(text, data)
    lengths = (0, 1, 7, len(whole), len(whole) + 1, 10**8 + 1, 2**32, 2**63, 2**64 - 1)
    found = {f"a header of {n} bytes": _packed(text, data, length=n) for n in lengths}
    found |= {f"{n} bytes long": whole[:n] for n in (1, 7, 8, 9, 100, len(text) + 8)}
    return found | {
        "without its last byte": whole[:-1],
        "a byte too long": whole + b"\0",
        "the data twice": whole + data,
        "a header that is an array": _packed(b"[]", data),
        "a header that is null": _packed(b"null", data),
        "a header that is a number": _packed(b"7", data),
        "a header nested 200,000 deep": _packed(DEEP, data),
        "a header that is not UTF-8": _packed(b'{"\xff": {}}', data),
        "a header with half an object": _packed(text[:-1], data),
        "a header of two objects": _packed(text + text, data),
        "a header without tensors": _packed(b"{}"),
        "a header with a comment": _packed(text + b"// weights", data),
        "a pickle by its name": pickle.dumps({"weight": 1}),
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
            found[name] = _packed(good.as_json(header | {QUERY: entry}), data)
        entry = {k: x for k, x in header[QUERY].items() if k != key}
        found[f"no {key}"] = _packed(good.as_json(header | {QUERY: entry}), data)
    for value in (None, [], 7, "F32"):
        name = f"a tensor described by {json.dumps(value)}"
        found[name] = _packed(good.as_json(header | {QUERY: value}), data)
    for value in ([], 7, {"a": 1}, {"a": {"b": "c"}}):
        name = f"metadata of {json.dumps(value)}"
        found[name] = _packed(good.as_json(header | {"__metadata__": value}), data)
    return found


def _contents() -> dict[str, bytes]:
    """Well-formed files that hold the wrong tensors."""

    def changed(change: Callable[[dict[str, np.ndarray]], Any]) -> bytes:
        tensors = good.tensors()
        change(tensors)
        return save(tensors)

    def spelled_twice(tensors: dict[str, np.ndarray]) -> None:
        tensors[QUERY.removeprefix("bert.")] = tensors[QUERY]

    return {
        "a tensor missing": changed(lambda t: t.pop(QUERY)),
        "a tensor too many": changed(lambda t: t.update({"extra": np.zeros(3, np.float32)})),
        "a tensor twice, spelled differently": changed(spelled_twice),
        "a tensor without a name": changed(lambda t: t.update({"": np.zeros(3, np.float32)})),
        "a tensor cut": changed(lambda t: t.update({QUERY: t[QUERY][:, :-1].copy()})),
        "a tensor of whole numbers": changed(lambda t: t.update({QUERY: t[QUERY].astype(int)})),
        "a tensor that is not a number": changed(lambda t: t[QUERY].fill(np.nan)),
        "a tensor that is infinite": changed(lambda t: t[QUERY].fill(np.inf)),
        "another model's names": changed(
            lambda t: [t.update({f"gpt.{name}": t.pop(name)}) for name in list(t)]
        ),
    }


def _indices() -> dict[str, dict[str, Spoil]]:
    whole = save(good.tensors())
    names = dict.fromkeys(good.tensors(), "a.safetensors")
    shard: dict[str, Spoil] = {"a.safetensors": whole}

    def index(value: object) -> dict[str, Spoil]:
        return {INDEX: good.as_json(value), **shard}

    found = {name: {INDEX: spoil, **shard} for name, spoil in (GARBAGE | IN_PLACE).items()}
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
        "nested 200,000 deep": {INDEX: DEEP, **shard},
        "a tensor that no shard has": index({"weight_map": names | {"b": "a.safetensors"}}),
        "a tensor in two shards": {
            **index({"weight_map": names | {QUERY: "b.safetensors"}}),
            "b.safetensors": whole,
        },
        "a shard that is damaged": {**index({"weight_map": names}), "a.safetensors": whole[:-1]},
        "a shard that is a folder": {
            **index({"weight_map": names}),
            "a.safetensors": IN_PLACE["a folder"],
        },
        "a shard that is a pipe": {
            **index({"weight_map": names}),
            "a.safetensors": IN_PLACE["a pipe"],
        },
        "larger than any index": {INDEX: b" " * (64 * 2**20 + 1), **shard},
    }


class Code:
    """What runs a function when it is unpickled without care."""

    def __reduce__(self) -> tuple:
        """Print, where an attacker would do worse."""
        return (print, ("unpickled",))


def _pickles() -> dict[str, bytes]:
    import torch

    def stored(value: object) -> bytes:
        sink = io.BytesIO()
        torch.save(value, sink)
        return sink.getvalue()

    tensors = {name: torch.tensor(x) for name, x in good.tensors().items()}
    whole = stored(tensors)
    return {
        "code": stored({"weight": Code()}),
        "code in a plain pickle": pickle.dumps(Code()),
        "a list": stored([1, 2]),
        "a number": stored(7),
        "one tensor": stored(torch.zeros(3)),
        "numbers by name": stored({"weight": 7}),
        "tensors by number": stored({7: torch.zeros(3)}),
        "a sparse tensor": stored(tensors | {QUERY: torch.zeros(32, 32).to_sparse()}),
        "a tensor without data": stored(tensors | {QUERY: torch.zeros(32, 32, device="meta")}),
        "complex numbers": stored(tensors | {QUERY: torch.zeros(32, 32, dtype=torch.complex64)}),
        "a tensor missing": stored({k: x for k, x in tensors.items() if k != QUERY}),
        **{f"cut at {part} %": whole[: len(whole) * part // 100] for part in (5, 25, 50, 75, 99)},
    }
