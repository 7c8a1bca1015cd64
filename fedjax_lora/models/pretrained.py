"""A model ready to use: module, parameters, tokenizer and where it came from."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import trees
from fedjax_lora.errors import InputError
from fedjax_lora.models import checkpoint, fresh, stack
from fedjax_lora.models.config import EncoderConfig
from fedjax_lora.models.heads import SequenceClassifier
from fedjax_lora.models.hf_config import read_config
from fedjax_lora.models.names import is_stacked
from fedjax_lora.models.sources import resolve
from fedjax_lora.models.tensors import weight_files, weights_sha256
from fedjax_lora.untrusted import brief

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A sequence classifier with its parameters.

    Attributes:
      module: call it as ``module.apply({'params': params}, input_ids, attention_mask, ...)``.
      params: ``{'encoder': ..., 'head': ...}``, float32, layers stacked on the first axis.
      config: what `module` was built from.
      tokenizer: a `transformers` tokenizer; None if the checkpoint has none.
      fingerprint: identifies the encoder's parameters: digest of the stored weights, the number
        of layers used and every newly initialised encoder parameter.
      folder: where it was read from; None for random parameters.
      new_params: paths of the parameters that were newly initialised, not read.
    """

    module: SequenceClassifier
    params: dict[str, Any]
    config: EncoderConfig
    tokenizer: Any
    fingerprint: str
    folder: Path | None
    new_params: tuple[str, ...]


def load(
    name: str,
    *,
    num_labels: int,
    layers: int | None = None,
    dtype: str = "float32",
    pooling: str = "family",
    dropout: float | None = None,
    remat: bool = False,
    scan_unroll: int | None = None,
    key: jax.Array,
) -> Pretrained:
    """Load a pretrained encoder with a classification head.

    Args:
      name: an alias (`sources.MODELS`), a checkpoint folder, or a hub id ``org/name``.
      num_labels: width of the logits; 1 for regression.
      layers: use only the first `layers` layers; all of them if None.
      dtype: compute dtype, ``float32`` or ``bfloat16``; parameters are float32 either way.
      pooling: ``family`` as Hugging Face does it, or ``mean`` over the tokens.
      dropout: replaces every dropout rate; the checkpoint's own rates if None.
      remat: recompute layers in the backward pass to save memory.
      scan_unroll: layers per loop step; chosen by backend if None.
      key: for a head (and a pooler) that the checkpoint does not have.

    Raises:
      InputError: a model that cannot be found, read or supported, or an option out of range.
    """
    source = resolve(name)
    options: dict[str, Any] = {
        "num_labels": num_labels,
        "dtype": dtype,
        "pooling": pooling,
        "remat": remat,
        "scan_unroll": scan_unroll,
    }
    if dropout is not None:
        options |= dict.fromkeys(("hidden_dropout", "attention_dropout", "head_dropout"), dropout)
    full = read_config(source.folder, **options)
    config = _cut(full, layers)
    digest = _verified_digest(source.folder, source.sha256)
    read = checkpoint.read(source.folder, config, key=key, stored_layers=full.layers)
    return Pretrained(
        module=SequenceClassifier(config),
        params=read.params,
        config=config,
        tokenizer=_tokenizer(source.folder, config),
        fingerprint=fingerprint(f"{digest} layers={config.layers}", read.params, read.new_params),
        folder=source.folder,
        new_params=read.new_params,
    )


def frozen(model: Pretrained) -> dict[str, Any]:
    """The parameters without the head, in the form that the module computes with fastest here."""
    base = {name: part for name, part in model.params.items() if name != "head"}
    if not stack.unrolled(model.config.layers, model.config.scan_unroll):
        return base
    return stack.by_layer(base, functools.partial(is_stacked, model.config))


def redraw(model: Pretrained, key: jax.Array) -> Pretrained:
    """What `load` returns for another key; what the checkpoint holds is shared, not read again.

    Args:
      model: from `load`.
      key: for the parameters that the checkpoint does not have.
    """
    return with_values(model, fresh.draw(model.config, model.new_params, key))


def with_values(model: Pretrained, values: Mapping[str, Any]) -> Pretrained:
    """The model with other values for its head, or for what its checkpoint does not have.

    Args:
      model: from `load`.
      values: by path, joined by ``/``.
    """
    assert model.folder is not None, "a model without a checkpoint has nothing to share"
    params = trees.replace(model.params, {path: jnp.asarray(x) for path, x in values.items()})
    label = f"{weights_sha256(model.folder)} layers={model.config.layers}"
    return dataclasses.replace(
        model, params=params, fingerprint=fingerprint(label, params, model.new_params)
    )


def _cut(config: EncoderConfig, layers: int | None) -> EncoderConfig:
    if layers is None:
        return config
    if not 1 <= layers <= config.layers:
        raise InputError(
            f"layers is {layers} but must be between 1 and the {config.layers} the model has."
        )
    return dataclasses.replace(config, layers=layers)


def _verified_digest(folder: Path, pinned: str | None) -> str:
    """Digest of the weights, which must be the pinned one if there is one."""
    digest = weights_sha256(folder)
    if pinned is not None and digest != pinned:
        files = ", ".join(str(file) for file in weight_files(folder))
        raise InputError(
            f"{files} is not the published file: its sha256 is {digest}, not {pinned}; "
            "download it again, or pass the folder's path to use it as it is."
        )
    return digest


def fingerprint(label: str, params: dict[str, Any], paths: Iterable[str]) -> str:
    """Hex sha256 of a label and of the encoder's parameters at the given paths."""
    total = hashlib.sha256(label.encode())
    flat = trees.flat(params)
    for path in sorted(paths):
        if path.startswith("encoder/"):
            total.update(path.encode())
            total.update(np.asarray(flat[path]).tobytes())
    return total.hexdigest()


def _tokenizer(folder: Path, config: EncoderConfig) -> Any:
    """The folder's tokenizer; None if it has no tokenizer files."""
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        # Said aloud: without it `transformers` asks on the terminal whether to run foreign code.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        ids = tokenizer.get_vocab().values()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare exceptions, and panics of Rust, which are not `Exception`
        reason = brief(error)
        raise InputError(
            f"The tokenizer in {folder} cannot be loaded ({reason}); check its files."
        ) from error
    needed = max(len(tokenizer), max(ids, default=-1) + 1)
    if needed > config.vocab_size:
        raise InputError(
            f"The tokenizer in {folder} has {needed} tokens but the model only "
            f"{config.vocab_size}; they do not belong together."
        )
    return tokenizer
