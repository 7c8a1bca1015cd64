"""A Hugging Face checkpoint folder as a parameter tree."""

import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core import quantization
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.models import init
from fedjax_lora.models.huggingface import param_names
from fedjax_lora.models.huggingface.tensors import Tensor, open_tensors
from fedjax_lora.models.module_types import Config

# What a checkpoint may hold beside the model: heads of pretraining and of other tasks, a pooler
# that the config does not use, a vocabulary matrix that is tied, and buffers that old versions
# saved.
_OTHER_PARTS = re.compile(
    r"embeddings\.(position_ids|token_type_ids)$"
    r"|(cls|lm_head|predictions|sop_classifier|qa_outputs|vocab_[a-z_]+)\."
    r"|(pooler|classifier|pre_classifier|score)\."
    r"|layers\.\d+\.self_attn\.rotary_emb\."
)
_OUTPUTS = ("head/classifier/", "head/out_proj/", "head/score/")

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
"""Where an array goes, from its parameter's path and its shape."""


class Checkpoint(NamedTuple):
    """What was read.

    Attributes:
      params: of the module that the config describes.
      new_params: paths, joined by ``/``, of parameters that the checkpoint does not have.
    """

    params: dict[str, Any]
    new_params: tuple[str, ...]


class _Slot(NamedTuple):
    """The place of one stored tensor in the parameter tree.

    Attributes:
      path: of the parameter.
      layer: index into its layer axis; None if it has none.
      name: of the stored tensor, without the base prefix.
      shape: that the stored tensor must have.
    """

    path: str
    layer: int | None
    name: str
    shape: tuple[int, ...]


def read(
    folder: Path,
    config: Config,
    *,
    key: jax.Array,
    stored_layers: int | None = None,
    storage: str = "float32",
    sharding: Sharding | None = None,
) -> Checkpoint:
    """Read a model's parameters from a checkpoint, tensor by tensor.

    A head that is absent, belongs to another task or has another number of labels is newly
    initialised from `key`, and so is an absent pooler.

    Args:
      folder: holds the weights.
      config: what to read; fewer `layers` than are stored reads the first ones only.
      key: for newly initialised parameters.
      stored_layers: how many layers the checkpoint has; `config.layers` if None.
      storage: one of `fedjax_lora.core.quantization.STORAGES`.
      sharding: where each parameter goes; the default device if None.

    Raises:
      InputError: missing and unexpected tensors and wrong shapes, all of them in one message.
    """
    shapes = init.shapes(config)
    stored = _bare_names(open_tensors(folder), config)
    slots = list(_slots(config, shapes, range(config.layers)))
    cut = _slots(config, shapes, range(config.layers, stored_layers or config.layers))
    new = _new_paths(config, slots, stored)
    slots = [slot for slot in slots if slot.path not in new]
    raise_all(
        f"The weights in {folder} do not fit the {config.family} that its config.json describes",
        [*_misfits(slots, stored), *_unexpected([*slots, *cut], stored)],
    )
    place = functools.partial(_place, sharding)
    values = dict(_assembled(slots, stored, shapes, storage, place))
    for path, value in init.draw(config, new, key).items():
        values[path] = place(path, value.astype(quantization.dtype_of(path, storage)))
    return Checkpoint(init.tree(values), tuple(sorted(new)))


def _bare_names(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Tensors by name without the base prefix, and with the old spelling of LayerNorm's."""
    bare = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(f"{config.prefix}.")
        short = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", short))
        if short in bare:
            raise InputError(f"Tensor {name!r} is stored twice, under two spellings of its name.")
        bare[short] = tensor
    return bare


def _slots(config: Config, shapes: Mapping[str, tuple[int, ...]], layers: range) -> Iterator[_Slot]:
    """Where each stored tensor of these layers goes, and each that belongs to no layer."""
    prefix = f"{config.prefix}."
    for path, shape in shapes.items():
        stacked = param_names.is_stacked(config, path)
        one = shape[1:] if stacked else shape
        one = one[::-1] if path.endswith("/kernel") else one
        for layer in layers if stacked else (None,):
            yield _Slot(
                path, layer, param_names.hf_name(config, path, layer).removeprefix(prefix), one
            )


def _new_paths(config: Config, slots: Collection[_Slot], stored: Mapping[str, Tensor]) -> set[str]:
    """Parameters to initialise: the whole head if it is another task's, the pooler if absent."""
    head = [slot for slot in slots if slot.path.startswith("head/")]
    pooler = [slot for slot in slots if slot.path.startswith("encoder/pooler/")]
    new = [] if _has_head(config, head, stored) else head
    if not any(slot.name in stored for slot in pooler):
        new = new + pooler
    return {slot.path for slot in new}


def _has_head(config: Config, head: Collection[_Slot], stored: Mapping[str, Tensor]) -> bool:
    """Whether the stored head is this model's: same pooling, same task, same labels."""
    # A head for another task can have the same names and shapes; the class name tells.
    classes = config.architectures
    if classes and not any(name.endswith("ForSequenceClassification") for name in classes):
        return False
    found = [slot for slot in head if slot.name in stored]
    outputs = [slot for slot in found if slot.path.startswith(_OUTPUTS)]
    same_labels = all(stored[slot.name].shape[:1] == (config.num_labels,) for slot in outputs)
    return config.pooling == "family" and bool(found) and same_labels


def _misfits(slots: Collection[_Slot], stored: Mapping[str, Tensor]) -> Iterator[str]:
    """Tensors that are missing, have the wrong shape, or hold no floating-point numbers."""
    if missing := [slot.name for slot in slots if slot.name not in stored]:
        yield f"missing {', '.join(_grouped(missing))}"
    wrong: dict[str, list[str]] = {}
    for slot in slots:
        tensor = stored.get(slot.name)
        if tensor is not None and tensor.shape != slot.shape:
            problem = f"stored as {tensor.shape} but must be {slot.shape}"
            wrong.setdefault(problem, []).append(slot.name)
        if tensor is not None and not tensor.floating:
            problem = f"stored as {tensor.dtype}, not as floating-point numbers"
            wrong.setdefault(problem, []).append(slot.name)
    for problem, bad in wrong.items():
        yield f"{', '.join(_grouped(bad))} {'is' if len(bad) == 1 else 'are'} {problem}"


def _unexpected(slots: Collection[_Slot], stored: Mapping[str, Tensor]) -> Iterator[str]:
    known = {slot.name for slot in slots}
    if extra := [name for name in stored if name not in known and not _OTHER_PARTS.match(name)]:
        yield f"unexpected {', '.join(_grouped(extra))}"


def _grouped(tensor_names: Collection[str]) -> list[str]:
    """Names sorted, those that differ only in their layer as one: ``layer.{0,1}.x``."""
    layers: dict[str, list[int]] = {}
    for name in tensor_names:
        number = re.search(r"\blayers?\.(\d+)", name)
        pattern = name if number is None else f"{name[: number.start(1)]}*{name[number.end(1) :]}"
        layers.setdefault(pattern, []).extend([] if number is None else [int(number[1])])
    return [
        pattern.replace("*", f"{numbers[0]}" if len(numbers) == 1 else _braces(numbers))
        for pattern, numbers in sorted(layers.items())
    ]


def _braces(numbers: Collection[int]) -> str:
    return "{" + ",".join(map(str, sorted(numbers))) + "}"


def _assembled(
    slots: Collection[_Slot],
    stored: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    storage: str,
    place: Callable[[str, Any], Any],
) -> Iterator[tuple[str, Any]]:
    """Parameters by path; one at a time is on the host too, of encoded ones one layer at a time."""
    parts: dict[str, list[_Slot]] = {}
    for slot in slots:
        parts.setdefault(slot.path, []).append(slot)
    broken: list[str] = []
    for path, slots_of_path in parts.items():
        build = _encoded if quantization.is_encoded(path, storage) else _stacked
        value = build(path, slots_of_path, stored, shapes[path], storage, broken)
        yield path, place(path, value)
    raise_all("The weights hold what is not a finite number", _grouped(broken))


def _oriented(slot: _Slot, stored: Mapping[str, Tensor], broken: list[str]) -> np.ndarray:
    """A stored tensor as a parameter has it; if it is not finite its name is added to `broken`."""
    tensor = stored[slot.name].read()
    if not np.all(np.isfinite(tensor)):
        broken.append(slot.name)
    return tensor.T if slot.path.endswith("/kernel") else tensor


def _stacked(
    path: str,
    slots: Collection[_Slot],
    stored: Mapping[str, Tensor],
    shape: tuple[int, ...],
    storage: str,
    broken: list[str],
) -> np.ndarray:
    value = np.empty(shape, quantization.dtype_of(path, storage))
    for slot in slots:
        value[... if slot.layer is None else slot.layer] = _oriented(slot, stored, broken)
    return value


def _encoded(
    path: str,
    slots: Collection[_Slot],
    stored: Mapping[str, Tensor],
    shape: tuple[int, ...],
    storage: str,
    broken: list[str],
) -> Any:
    codes = [
        quantization.encode(jnp.asarray(_oriented(slot, stored, broken), jnp.float32), storage)
        for slot in slots
    ]
    stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *codes)
    return stacked if len(shape) > 2 else jax.tree.map(lambda x: x[0], stacked)


def _place(sharding: Sharding | None, path: str, value: Any) -> Any:
    if sharding is None:
        return jax.tree.map(jnp.asarray, value)

    def put(x: Any) -> jax.Array:
        host = np.asarray(x)  # each device, of this process or another, takes its part
        return jax.make_array_from_callback(x.shape, sharding(path, x.shape), host.__getitem__)

    return jax.tree.map(put, value)
