"""Reading a Hugging Face checkpoint folder into a parameter tree."""

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
from fedjax_lora.core.types import Params
from fedjax_lora.models import init
from fedjax_lora.models.decoder_config import DecoderConfig
from fedjax_lora.models.huggingface import param_names
from fedjax_lora.models.huggingface.tensors import Tensor, open_tensors
from fedjax_lora.models.module_types import Config, is_encoder

# Tensors that a checkpoint may contain besides the model: heads of pretraining and of other tasks,
# a pooler that the config does not use, a tied vocabulary matrix, and buffers of old versions.
_OTHER_PARTS = re.compile(
    r"embeddings\.(position_ids|token_type_ids)$"
    r"|(lm_predictions|mask_predictions)\."
    r"|(cls|lm_head|predictions|discriminator_predictions|generator_(predictions|lm_head)|sop_classifier|qa_outputs|vocab_[a-z_]+)\."
    r"|(pooler|classifier|pre_classifier|score|head)\.|decoder\.(weight|bias)$"
    r"|layers\.\d+\.self_attn\.rotary_emb\.|h\.\d+\.attn\.(masked_)?bias$"
)
_OUTPUTS = ("head/classifier/", "head/out_proj/", "head/score/")

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
"""Maps a parameter's path and shape to the sharding of its array."""


class Checkpoint(NamedTuple):
    """Parameters read from a checkpoint.

    Attributes:
      params: parameters of the module that the config describes.
      new_params: ``/``-joined paths of the parameters that the checkpoint does not have.
    """

    params: Params
    new_params: tuple[str, ...]


class _Slot(NamedTuple):
    """Position of one stored tensor in the parameter tree.

    Attributes:
      path: path of the parameter.
      layer: index into its layer axis; None if it has none.
      name: name of the stored tensor, without the base prefix.
      shape: required shape of the stored tensor.
      transposed: whether the stored tensor is the transposed parameter.
    """

    path: str
    layer: int | None
    name: str
    shape: tuple[int, ...]
    transposed: bool


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

    A head that is missing, belongs to another task or has another number of labels is newly
    initialised from `key`, and so is a missing pooler.

    Args:
      folder: the checkpoint folder with the weights.
      config: the model; with fewer `layers` than are stored, only the first ones are read.
      key: random key of newly initialised parameters.
      stored_layers: number of layers in the checkpoint; `config.layers` if None.
      storage: one of `fedjax_lora.core.quantization.STORAGES`.
      sharding: sharding of each parameter; the default device if None.

    Raises:
      InputError: lists all missing and unexpected tensors and wrong shapes.
    """
    shapes = init.shapes(config)
    stored = _bare_names(open_tensors(folder), config)
    slots = list(_slots(config, shapes, range(config.layers)))
    cut = _slots(config, shapes, range(config.layers, stored_layers or config.layers))
    new = _new_paths(config, slots, stored)
    slots = [slot for slot in slots if slot.path not in new]
    raise_all(
        f"The weights in {folder} do not fit the {config.family} that its config.json describes",
        [*_misfits(slots, stored), *_unexpected(config, [*slots, *cut], stored)],
    )
    place = functools.partial(_place, sharding)
    values = dict(_assembled(slots, stored, shapes, storage, place))
    for path, value in init.draw(config, new, key).items():
        values[path] = place(path, value.astype(quantization.dtype_of(path, storage)))
    return Checkpoint(init.tree(values), tuple(sorted(new)))


def has_own_vocabulary(folder: Path, config: Config) -> bool:
    """Whether a language model that is said to be tied stores a vocabulary matrix of its own.

    `transformers` then uses the stored matrix. A copy of the embedding table changes nothing.

    Args:
      folder: the checkpoint folder with the weights.
      config: the model.
    """
    if not isinstance(config, DecoderConfig) or is_encoder(config):
        return False
    if config.num_labels or not config.tied:
        return False
    stored = _bare_names(open_tensors(folder), config)
    own = param_names.hf_name(config, "decoder/embed_tokens/embedding")
    names = ("lm_head.weight", own.removeprefix(f"{config.prefix}."))
    head, table = (stored.get(name) for name in names)
    if head is None or table is None:
        return False
    return head.shape != table.shape or not np.array_equal(head.read(), table.read())


def _bare_names(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Remove the base prefix and the old LayerNorm spelling from the names of tensors."""
    bare = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(f"{config.prefix}.")
        short = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", short))
        if short in bare:
            raise InputError(f"Tensor {name!r} is stored twice, under two spellings of its name.")
        bare[short] = tensor
    return bare


def _slots(config: Config, shapes: Mapping[str, tuple[int, ...]], layers: range) -> Iterator[_Slot]:
    """Yield the slots of these layers' tensors, and of tensors that belong to no layer."""
    prefix = f"{config.prefix}."
    for path, shape in shapes.items():
        stacked = param_names.is_stacked(config, path)
        one = shape[1:] if stacked else shape
        transposed = param_names.is_transposed(config, path)
        one = one[::-1] if transposed else one
        for layer in layers if stacked else (None,):
            if not param_names.is_stored(config, path, layer):
                continue
            name = param_names.hf_name(config, path, layer).removeprefix(prefix)
            yield _Slot(path, layer, name, one, transposed)


def _new_paths(config: Config, slots: Collection[_Slot], stored: Mapping[str, Tensor]) -> set[str]:
    """Paths of parameters to initialise: the head if it is another task's, a missing pooler."""
    head = [slot for slot in slots if slot.path.startswith("head/")]
    pooler = [slot for slot in slots if slot.path.startswith("encoder/pooler/")]
    new = [] if _has_head(config, head, stored) else head
    if not any(slot.name in stored for slot in pooler):
        new = new + pooler
    return {slot.path for slot in new}


def _has_head(config: Config, head: Collection[_Slot], stored: Mapping[str, Tensor]) -> bool:
    """Whether the stored head fits the model: same pooling, task and number of labels."""
    # A head of another task can have the same names and shapes; the class name distinguishes them.
    classes = config.architectures
    if classes and not any(name.endswith("ForSequenceClassification") for name in classes):
        return False
    present = [slot for slot in head if slot.name in stored]
    outputs = [slot for slot in present if slot.path.startswith(_OUTPUTS)]
    same_labels = all(stored[slot.name].shape[:1] == (config.num_labels,) for slot in outputs)
    return config.pooling == "family" and bool(present) and same_labels


def _misfits(slots: Collection[_Slot], stored: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the tensors that are missing, of the wrong shape, or not floating-point."""
    if missing := [slot.name for slot in slots if slot.name not in stored]:
        yield f"missing {', '.join(_grouped(missing))}"
    wrong: dict[str, list[str]] = {}
    for slot in slots:
        if slot.name in stored:
            for problem in _problems(slot, stored[slot.name]):
                wrong.setdefault(problem, []).append(slot.name)
    for problem, names in wrong.items():
        yield f"{', '.join(_grouped(names))} {'is' if len(names) == 1 else 'are'} {problem}"


def _problems(slot: _Slot, tensor: Tensor) -> Iterator[str]:
    if tensor.shape != slot.shape:
        yield f"stored as {tensor.shape} but must be {slot.shape}"
    if not tensor.floating:
        yield f"stored as {tensor.dtype}, not as floating-point numbers"


def _unexpected(
    config: Config, slots: Collection[_Slot], stored: Mapping[str, Tensor]
) -> Iterator[str]:
    expected = {slot.name for slot in slots}
    extra = [name for name in stored if name not in expected and not _OTHER_PARTS.match(name)]
    extra += _other_head_parts(config, stored)
    if extra:
        yield f"unexpected {', '.join(_grouped(extra))}"


def _other_head_parts(config: Config, stored: Mapping[str, Tensor]) -> list[str]:
    """Parts of a language model's head besides its matrix, which may be a tied copy."""
    if is_encoder(config) or config.num_labels:
        return []
    return [x for x in stored if x.startswith("lm_head.") and x != "lm_head.weight"]


def _grouped(tensor_names: Collection[str]) -> list[str]:
    """Sort names, and merge those that differ only in their layer: ``layer.{0,1}.x``."""
    layers: dict[str, list[int]] = {}
    for name in tensor_names:
        number = re.search(r"\b(?:layers?|h)\.(\d+)", name)
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
    """Yield parameters by path; the host holds one at a time, or one layer of a quantized one."""
    parts: dict[str, list[_Slot]] = {}
    for slot in slots:
        parts.setdefault(slot.path, []).append(slot)
    broken: list[str] = []
    for path, slots_of_path in parts.items():
        build = _encoded if quantization.is_encoded(path, storage) else _stacked
        value = build(path, slots_of_path, stored, shapes[path], storage, broken)
        yield path, place(path, value)
    raise_all("The weights contain numbers that are not finite", _grouped(broken))


def _oriented(slot: _Slot, stored: Mapping[str, Tensor], broken: list[str]) -> np.ndarray:
    """Read a tensor in the orientation of its parameter; add it to `broken` if not finite."""
    tensor = stored[slot.name].read()
    if not np.all(np.isfinite(tensor)):
        broken.append(slot.name)
    return tensor.T if slot.transposed else tensor


def _stacked(
    path: str,
    slots: Collection[_Slot],
    stored: Mapping[str, Tensor],
    shape: tuple[int, ...],
    storage: str,
    broken: list[str],
) -> np.ndarray:
    value = np.empty(shape, quantization.dtype_of(path, storage))
    if path.endswith("/scale"):
        value.fill(1)  # of a norm that one layer does not have
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
        host = np.asarray(x)  # each device, of this process or another, takes its shard
        return jax.make_array_from_callback(x.shape, sharding(path, x.shape), host.__getitem__)

    return jax.tree.map(put, value)
