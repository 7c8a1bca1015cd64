"""Checkpoints in one GGUF file, the format of llama.cpp: their config and tensors.

Matrices are dequantized to float32 as the package `gguf` does it. A file's metadata takes the place
of ``config.json``; `fedjax_lora.models.huggingface.gguf_tokenizer` makes the tokenizer.
"""

import collections
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.optional_packages import is_installed
from fedjax_lora.core.untrusted_files import check_regular_file, first_line

ENDING = ".gguf"

_CLASSES: Mapping[str, str] = MappingProxyType(
    {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
)
"""The architectures that are read, by llama.cpp's names, and their classes in `transformers`."""

_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "intermediate_size": "feed_forward_length",
        "max_position_embeddings": "context_length",
        "num_attention_heads": "attention.head_count",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    }
)
"""Fields that every file must have, by their names in a ``config.json``."""

_TYPES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
"""Types of tensors that are read."""

_MODULES: Mapping[str, str] = MappingProxyType(
    {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
_ENDS = ("bos", "eos")
_FREQUENCIES = "rope_freqs.weight"
"""Divisors of the rotary frequencies, by which files express the rope type llama3."""


class Stored(NamedTuple):
    """A tensor of a GGUF file, under its name in `transformers`.

    Attributes:
      shape: in PyTorch's order.
      type: llama.cpp's name of its type, such as ``Q8_0``.
      read: dequantizes it to float32.
    """

    shape: tuple[int, ...]
    type: str
    read: Callable[[], np.ndarray]


class _File(NamedTuple):
    """The contents of a file: metadata by key, and tensors as `gguf` describes them by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]


def is_gguf(path: Path) -> bool:
    """Whether a checkpoint is a GGUF file, by the ending of its name."""
    return path.suffix.lower() == ENDING


def metadata(file: Path) -> Mapping[str, Any]:
    """Read a file's metadata by key, for example ``tokenizer.ggml.tokens``.

    Raises:
      InputError: the file cannot be read, or the package `gguf` is not installed.
    """
    return _open(file).metadata


def read_config(file: Path) -> dict[str, Any]:
    """Make the ``config.json`` of the model in a file.

    Raises:
      InputError: the file cannot be read, or describes a model of another kind.
    """
    opened = _open(file)
    architecture = opened.metadata.get("general.architecture")
    if architecture not in list(_CLASSES):  # a list, because the value may not be hashable
        raise InputError(
            f"{file} holds a {architecture!r} model; of GGUF files only {', '.join(_CLASSES)} are "
            "read, so use the model's original checkpoint."
        )
    own = _Keys(architecture, opened.metadata)
    missing = [f"{architecture}.{key}" for key in _FIELDS.values() if own(key) is None]
    raise_all(f"{file} lacks what describes its model", missing)
    raise_all(f"{file} asks for what is not supported", _unsupported(own))
    return _config(own, opened, file)


def _config(own: "_Keys", opened: _File, file: Path) -> dict[str, Any]:
    tensors, architecture = opened.tensors, own.architecture
    config: dict[str, Any] = {name: own(key) for name, key in _FIELDS.items()}
    config |= {
        "model_type": architecture,
        "architectures": [_CLASSES[architecture]],
        "num_key_value_heads": own("attention.head_count_kv") or config["num_attention_heads"],
        "vocab_size": _vocab_size(own, tensors, file),
        "tie_word_embeddings": "output.weight" not in tensors,
        "rope_theta": own("rope.freq_base") or 10_000.0,
    }
    if width := own("attention.key_length") or own("rope.dimension_count"):
        config["head_dim"] = width
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_output.bias" in tensors
        config["mlp_bias"] = "blk.0.ffn_down.bias" in tensors
    if scaling := _rope_scaling(own, config, tensors, file):
        config["rope_scaling"] = scaling
    ids = {f"{x}_token_id": opened.metadata.get(f"tokenizer.ggml.{x}_token_id") for x in _ENDS}
    return config | {name: token for name, token in ids.items() if token is not None}


def read_tensors(file: Path) -> dict[str, Stored]:
    """Describe the tensors of a file by their names in `transformers`.

    Raises:
      InputError: the file cannot be read, or has tensors of a type that is not read.
    """
    opened = _open(file)
    other = collections.Counter(
        x.tensor_type.name for x in opened.tensors.values() if x.tensor_type.name not in _TYPES
    )
    raise_all(
        f"{file} stores tensors in types that are not read (only {', '.join(_TYPES)})",
        [f"{name} ({count} of them)" for name, count in sorted(other.items())],
    )
    architecture = opened.metadata.get("general.architecture")
    own = _Keys(str(architecture), opened.metadata)
    heads = own("attention.head_count"), own("attention.head_count_kv")
    paired = heads if architecture == "llama" else (None, None)
    return {
        _hf_name(name): _stored(name, tensor, *paired)
        for name, tensor in opened.tensors.items()
        if name != _FREQUENCIES
    }


class _Keys(NamedTuple):
    """The metadata of one architecture, by key without its prefix."""

    architecture: str
    metadata: Mapping[str, Any]

    def __call__(self, key: str) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}")


def _open(file: Path) -> _File:
    check_regular_file(file)
    if not is_installed("gguf"):
        raise InputError(
            f"{file} needs the package gguf to be read; install it (the extra [gguf])."
        )
    about = file.stat()
    return _opened(file, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=2)  # a model that is loaded asks several times, and parsing is slow
def _opened(file: Path, time: int, size: int) -> _File:
    import gguf

    try:
        reader = gguf.GGUFReader(file)  # pyright: ignore
        fields = {key: field.contents() for key, field in reader.fields.items()}
        return _File(fields, {tensor.name: tensor for tensor in reader.tensors})
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{file} is not a readable GGUF file ({first_line(error)}); check or download it again."
        ) from error


def _unsupported(own: _Keys) -> Iterator[str]:
    """Yield features that change the function and that the decoder lacks."""
    if own("expert_count"):
        yield "a mixture of experts"
    if own("attention.sliding_window"):
        yield "a sliding window"
    heads, hidden = own("attention.head_count"), own("embedding_length")
    width = own("attention.key_length") or (hidden // heads if heads else 0)
    for key in ("rope.dimension_count", "attention.value_length"):
        if own(key) not in (None, width):
            yield f"{own.architecture}.{key}={own(key)} with {width} features per head"


def _vocab_size(own: _Keys, tensors: Mapping[str, Any], file: Path) -> int:
    table = tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise InputError(f"{file} has no table of token embeddings (token_embd.weight).")
    return int(table.shape[1])


def _rope_scaling(
    own: _Keys, config: Mapping[str, Any], tensors: Mapping[str, Any], file: Path
) -> dict[str, Any] | None:
    """The ``rope_scaling`` of a ``config.json``; None without one."""
    kind, factor = own("rope.scaling.type"), own("rope.scaling.factor")
    if _FREQUENCIES in tensors:
        return _llama3(np.asarray(tensors[_FREQUENCIES].data, np.float64), config, file)
    if kind in (None, "none") or not factor:
        return None
    scaling = {"rope_type": kind, "factor": factor}
    original = own("rope.scaling.original_context_length")
    return scaling | ({"original_max_position_embeddings": original} if original else {})


def _llama3(divisors: np.ndarray, config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Find the parameters of the rope type llama3 that give these divisors of the frequencies."""
    width = 2 * len(divisors)
    plain = config["rope_theta"] ** -(np.arange(0, width, 2) / width)
    for original in (8192, 4096, 2048, 16384):
        scaling = {
            "rope_type": "llama3",
            "factor": round(float(divisors.max()), 4),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        turns = np.clip((original * plain / (2 * math.pi) - 1.0) / 3.0, 0.0, 1.0)
        if np.allclose(divisors, 1 / (turns + (1 - turns) / scaling["factor"]), rtol=1e-5):
            return scaling
    raise InputError(
        f"{file} divides rotary frequencies in a way that is not llama3's; use the model's "
        "original checkpoint."
    )


def _hf_name(name: str) -> str:
    """The name in `transformers`; an unknown one is kept, and is refused with the others."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in _MODULES:
        return name
    layer = "" if found[1] is None else f"model.layers.{found[1]}."
    return f"{layer}{_MODULES[found[2]]}.{found[3]}"


def _stored(name: str, tensor: Any, heads: int | None, kv_heads: int | None) -> Stored:
    """Describe a tensor; the queries and keys of Llama are stored with other rows per head."""
    rows = {".attn_q.": heads, ".attn_k.": kv_heads or heads}
    count = next((n for part, n in rows.items() if part in name), None)
    shape = tuple(int(x) for x in reversed(tensor.shape))

    def read() -> np.ndarray:
        import gguf

        value = gguf.dequantize(tensor.data, tensor.tensor_type)  # pyright: ignore
        value = value.reshape(shape)
        return value if not count else _in_halves(value, count)

    return Stored(shape, tensor.tensor_type.name, read)


def _in_halves(value: np.ndarray, heads: int) -> np.ndarray:
    """Turn the rows of each head from neighbouring pairs into two halves, as for `rotate`."""
    if value.shape[0] % (2 * heads):
        return value  # its shape is refused later
    pairs = value.reshape(heads, -1, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)
