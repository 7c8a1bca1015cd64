"""Pretrained models: module, parameters, tokenizer and fingerprint."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fedjax_lora.core import quantization, trees
from fedjax_lora.core.backend import check_backend
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.target import current_target
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.core.types import Params
from fedjax_lora.models import init, layer_stack
from fedjax_lora.models.decoder_config import DECODERS, WITHOUT_CLASSIFIER
from fedjax_lora.models.huggingface import checkpoint
from fedjax_lora.models.huggingface.config import read_config
from fedjax_lora.models.huggingface.param_names import is_stacked
from fedjax_lora.models.huggingface.registry import resolve
from fedjax_lora.models.huggingface.tensors import weight_files, weights_sha256
from fedjax_lora.models.huggingface.tokenizer import load_tokenizer
from fedjax_lora.models.module_types import Config, Module, is_encoder, module_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model with its parameters and tokenizer.

    Attributes:
      module: called as ``module.apply({'params': params}, input_ids, attention_mask, ...)``.
      params: ``{'encoder': ..., 'head': ...}``, or for a decoder ``{'decoder': ..., 'head': ...}``
        and, if its vocabulary matrix is not tied, ``'vocabulary'``; layers are stacked on the first
        axis. A language model's head is empty.
      config: the config of `module`.
      tokenizer: a `transformers` tokenizer; None if the checkpoint has none.
      fingerprint: identifies the parameters below the head: digest of the stored weights, the
        number of layers used, the storage in memory, and the newly initialised parameters.
      folder: the checkpoint folder; None for random parameters.
      new_params: paths of the newly initialised parameters.
      storage: storage of matrices in memory, one of `fedjax_lora.core.quantization.STORAGES`.
    """

    module: Module
    params: Params
    config: Config
    tokenizer: Tokenizer | None
    fingerprint: str
    folder: Path | None
    new_params: tuple[str, ...]
    storage: str = "float32"


def load(
    name: str,
    *,
    num_labels: int | None,
    layers: int | None = None,
    dtype: str = "float32",
    storage: str = "float32",
    pooling: str = "family",
    dropout: float | None = None,
    remat: bool = False,
    scan_unroll: int | None = None,
    sharding: checkpoint.Sharding | None = None,
    weights: bool = True,
    key: jax.Array,
) -> Pretrained:
    """Load a pretrained model with a classification head, or a decoder as a language model.

    Args:
      name: an alias in `MODELS`, a checkpoint folder, or a hub id ``org/name``.
      num_labels: width of the logits; 1 for regression; None for a language model.
      layers: use only the first `layers` layers; all layers if None.
      dtype: compute dtype, ``float32`` or ``bfloat16``.
      storage: storage of matrices in memory, one of `fedjax_lora.core.quantization.STORAGES`;
        vectors and the head are always float32.
      pooling: ``family`` as in Hugging Face's classes, or ``mean`` over the tokens.
      dropout: replaces every dropout rate; the checkpoint's rates if None.
      remat: recompute layers in the backward pass to save memory.
      scan_unroll: layers per loop step; if None 1 for matrices that are stored in fewer bits than
        they are multiplied in, else chosen by backend.
      sharding: sharding of each parameter, by path and shape; the default device if None.
      weights: False does not read the weights: parameters are shapes and have no fingerprint.
      key: random key of a head (and a pooler) that the checkpoint does not have.

    Raises:
      InputError: a model that cannot be found, read or supported, or an option out of range.
    """
    check_backend()
    quantization.check(storage)
    source = resolve(name, weights=weights)
    full = _full_config(
        source.folder,
        num_labels,
        dropout,
        storage,
        dtype=dtype,
        pooling=pooling,
        remat=remat,
        scan_unroll=scan_unroll,
    )
    config = _cut(full, layers)
    if weights and checkpoint.has_own_vocabulary(source.folder, config):
        config = dataclasses.replace(config, tied=False)
    pretrained = functools.partial(
        Pretrained,
        module=module_of(config),
        config=config,
        tokenizer=load_tokenizer(source.folder, config),
        folder=source.folder,
        storage=storage,
    )
    if not weights:
        params = init.abstract_params(config, storage)
        return pretrained(params=params, fingerprint="", new_params=())
    digest = _verified_digest(source.folder, source.sha256)
    read = checkpoint.read(
        source.folder,
        config,
        key=key,
        stored_layers=full.layers,
        storage=storage,
        sharding=sharding,
    )
    return pretrained(
        params=read.params,
        fingerprint=fingerprint(_label(digest, config, storage), read.params, read.new_params),
        new_params=read.new_params,
    )


def has_split_layers(config: Config) -> bool:
    """Whether each layer of `frozen_base` has separate arrays on the target.

    On an accelerator they would be copies of the loaded arrays.
    """
    return current_target().is_cpu and layer_stack.is_unrolled(config.layers, config.scan_unroll)


def frozen_base(model: Pretrained) -> Params:
    """Parameters without the head, in the form with which the target computes fastest."""
    base = {name: part for name, part in model.params.items() if name != "head"}
    if not has_split_layers(model.config):
        return base
    return layer_stack.split_layers(base, functools.partial(is_stacked, model.config))


def _full_config(
    folder: Path,
    num_labels: int | None,
    dropout: float | None,
    storage: str,
    *,
    scan_unroll: int | None,
    **options: Any,
) -> Config:
    """Config of the checkpoint with all its layers."""
    if scan_unroll is None and _is_decoded(storage, options["dtype"]):
        # Unrolled layers would all be decoded at once, and no memory would be saved.
        scan_unroll = 1
    options["scan_unroll"] = scan_unroll
    full = _with_labels(read_config(folder, **options), num_labels)
    return full if dropout is None else full.with_dropout(dropout)


def _is_decoded(storage: str, dtype: str) -> bool:
    """Whether matrices are stored in fewer bits than they are multiplied in on the target.

    A CPU multiplies bfloat16 in float32.
    """
    return storage != "float32" and (storage != dtype or current_target().is_cpu)


def reinitialize(model: Pretrained, key: jax.Array) -> Pretrained:
    """Draw the parameters that the checkpoint does not have again, with another key.

    The result equals that of `load` with this key; parameters of the checkpoint are shared.

    Args:
      model: a model from `load`.
      key: random key of the new parameters.
    """
    return replace_params(model, init.draw(model.config, model.new_params, key))


def replace_params(model: Pretrained, values: Mapping[str, ArrayLike]) -> Pretrained:
    """Replace parameters of the head, or parameters that the checkpoint does not have.

    Args:
      model: a model from `load`.
      values: new values by ``/``-joined path.

    Raises:
      InputError: the model is not from a checkpoint.
    """
    if model.folder is None:
        raise InputError("This model was not loaded from a checkpoint; create it again instead.")
    new = {
        path: jnp.asarray(value).astype(quantization.dtype_of(path, model.storage))
        for path, value in values.items()
    }
    params = init.tree(trees.flat(model.params) | new)
    label = _label(weights_sha256(model.folder), model.config, model.storage)
    return dataclasses.replace(
        model, params=params, fingerprint=fingerprint(label, params, model.new_params)
    )


def _label(digest: str, config: Config, storage: str) -> str:
    suffix = "" if storage == "float32" else f" storage={storage}"
    return f"{digest} layers={config.layers}{suffix}"


def _with_labels(config: Config, num_labels: int | None) -> Config:
    """Config of a classifier with this number of labels, or of a language model if None."""
    if num_labels is not None and num_labels < 1:
        raise InputError(f"num_labels is {num_labels} but must be at least 1 (1 means regression).")
    if num_labels is None and is_encoder(config):
        raise InputError(
            f"A {config.family} model is an encoder and cannot generate text; choose a decoder "
            f"({', '.join(DECODERS)})."
        )
    if num_labels is not None and config.family in WITHOUT_CLASSIFIER:
        raise InputError(
            f"transformers has no classifier of the family {config.family}, so that none could be "
            "exported; choose another model, or a task of language."
        )
    return dataclasses.replace(config, num_labels=num_labels or 0)


def _cut(config: Config, layers: int | None) -> Config:
    if layers is None:
        return config
    if not 1 <= layers <= config.layers:
        raise InputError(
            f"layers is {layers} but must be between 1 and the {config.layers} the model has."
        )
    return dataclasses.replace(config, layers=layers)


def _verified_digest(folder: Path, pinned: str | None) -> str:
    """Digest of the weights, checked against the pinned one if there is one."""
    digest = weights_sha256(folder)
    if pinned is not None and digest != pinned:
        files = ", ".join(str(file) for file in weight_files(folder))
        raise InputError(
            f"{files} is not the published file: its sha256 is {digest}, not {pinned}; "
            "download it again, or pass the folder's path to use it as it is."
        )
    return digest


def fingerprint(label: str, params: Params, paths: Iterable[str]) -> str:
    """Hex sha256 of a label and of the parameters at the given paths, except the head."""
    total = hashlib.sha256(label.encode())
    flat = trees.flat(params)
    for path in sorted(paths):
        if not path.startswith("head/"):
            total.update(path.encode())
            total.update(np.asarray(flat[path]).tobytes())
    return total.hexdigest()
