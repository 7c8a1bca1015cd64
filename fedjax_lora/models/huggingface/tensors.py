"""Tensors of a checkpoint, described without reading them and read one at a time."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.optional_packages import is_installed
from fedjax_lora.core.untrusted_files import first_line, read_json
from fedjax_lora.models.huggingface import gguf

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLE = "pytorch_model.bin"
_PICKLE_INDEX = "pytorch_model.bin.index.json"
_OTHER_LIBRARIES = ("flax_model.msgpack", "flax_model.msgpack.index.json", "tf_model.h5")


class Tensor(NamedTuple):
    """A stored tensor.

    Attributes:
      shape: shape as stored.
      dtype: the file format's name of the dtype.
      floating: whether the dtype is floating point.
      read: reads the tensor.
    """

    shape: tuple[int, ...]
    dtype: str
    floating: bool
    read: Callable[[], np.ndarray]


def weight_files(folder: Path) -> tuple[Path, ...]:
    """List the weight files of a checkpoint, in a fixed order; a GGUF file is the only one.

    Raises:
      InputError: no weights, or an index that is malformed, points outside the folder or lists
        missing files.
    """
    if gguf.is_gguf(folder):
        return (folder,)
    for single, index in ((_SINGLE, _INDEX), (_PICKLE, _PICKLE_INDEX)):
        if (folder / single).is_file():
            return (folder / single,)
        if (folder / index).is_file():
            return tuple(folder / name for name in sorted(set(_weight_map(folder, index).values())))
    others = [name for name in _OTHER_LIBRARIES if (folder / name).is_file()]
    if others:
        raise InputError(
            f"{folder} holds weights of another library alone ({', '.join(others)}), which are not "
            "read; save them for PyTorch with transformers 4 (from_pretrained(folder, "
            "from_flax=True) or from_tf=True, then save_pretrained)."
        )
    raise InputError(
        f"{folder} holds no weights: no {_SINGLE}, {_INDEX}, {_PICKLE} or {_PICKLE_INDEX}."
    )


def weights_sha256(folder: Path) -> str:
    """Hex SHA-256 digest of the weights: of the single file, or of the shards' digests in order.

    Raises:
      InputError: as `weight_files`.
    """
    digests = []
    for file in weight_files(folder):
        try:
            with file.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}).") from error
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Describe every tensor of a checkpoint, by its stored name.

    Raises:
      InputError: as `weight_files`; a damaged file; a ``.bin`` file if PyTorch is not installed.
    """
    if gguf.is_gguf(folder):
        return {
            name: Tensor(stored.shape, stored.type, True, stored.read)
            for name, stored in gguf.read_tensors(folder).items()
        }
    files = weight_files(folder)
    pickled = files[0].suffix == ".bin"
    tensors: dict[str, Tensor] = {}
    for file in files:
        shard = _torch_tensors(file) if pickled else _safe_tensors(file)
        raise_all(f"{folder} stores tensors in two shards", sorted(tensors.keys() & shard.keys()))
        tensors |= shard
    if files[0].name not in (_SINGLE, _PICKLE):
        index = _PICKLE_INDEX if pickled else _INDEX
        missing = sorted(_weight_map(folder, index).keys() - tensors.keys())
        raise_all(f"{folder / index} lists tensors that no shard has", missing)
    return tensors


def _weight_map(folder: Path, name: str) -> dict[str, str]:
    """Read an index's map from tensors to shard files, and check the file names."""
    index = folder / name
    kind = "PyTorch" if name == _PICKLE_INDEX else "safetensors"
    try:
        names = dict(read_json(index)["weight_map"])
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(f"{index} is not a {kind} index with a weight_map.") from error
    if not names:
        raise InputError(f"{index} lists no tensors.")
    files = {str(file) for file in names.values()}
    ending = ".bin" if name == _PICKLE_INDEX else ".safetensors"
    raise_all(f"{index} cannot be used", _bad_shards(folder, files, ending))
    return names


def _bad_shards(folder: Path, files: Iterable[str], ending: str) -> Iterable[str]:
    for file in sorted(files):
        # An index is an untrusted file: it may only name files of its own folder.
        if "/" in file or "\\" in file or not file.endswith(ending):
            yield f"{file!r} is not the plain name of a {ending} file"
        elif not os.path.isfile(folder / file):
            yield f"shard {file} is missing"


def _safe_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(file, framework="np")
    except (OSError, ValueError, SafetensorError) as error:
        reason = first_line(error)
        raise InputError(
            f"{file} is not a readable safetensors file ({reason}); check or download it again."
        ) from error
    return {name: _safe_tensor(opened, name) for name in opened.keys()}  # noqa: SIM118


def _safe_tensor(opened: Any, name: str) -> Tensor:
    described = opened.get_slice(name)
    dtype = described.get_dtype()
    return Tensor(
        shape=tuple(described.get_shape()),
        dtype=dtype,
        floating=dtype in ("F64", "F32", "F16", "BF16"),
        read=lambda: opened.get_tensor(name),
    )


def _torch_tensors(file: Path) -> dict[str, Tensor]:
    if not is_installed("torch"):
        raise InputError(
            f"{file} needs PyTorch to be read; install torch, or use a safetensors checkpoint."
        )
    import torch

    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{file} contains more than plain tensors, or is damaged.") from error
    named = isinstance(stored, dict) and all(isinstance(name, str) for name in stored)
    if not named or not all(map(_is_plain, stored.values())):
        raise InputError(f"{file} is not a dictionary of tensors.")
    return {name: _torch_tensor(value) for name, value in stored.items()}


def _is_plain(value: Any) -> bool:
    import torch

    return torch.is_tensor(value) and value.layout == torch.strided and value.device.type == "cpu"


def _torch_tensor(value: Any) -> Tensor:
    return Tensor(
        shape=tuple(value.shape),
        dtype=str(value.dtype),
        floating=value.is_floating_point(),
        read=lambda: value.float().numpy(),
    )
