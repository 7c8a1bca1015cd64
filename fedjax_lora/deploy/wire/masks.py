"""Masks of components, ``bool[(L,) R]`` per path, and how a message writes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lora.core.types import ClientParams, LoRA
from fedjax_lora.deploy.message import Form, Refused
from fedjax_lora.lora import LoraSpec, LoraTarget


def first_components(target: LoraTarget, spec: LoraSpec, count: int) -> np.ndarray:
    """The first components of a target's adapted layers, ``bool[(L,) R]``."""
    mask = np.arange(spec.rank) < count
    if not target.stack:
        return mask
    layers = np.ones(target.stack, bool) if target.layers is None else np.array(target.layers)
    return layers[:, None] & mask


def in_rows(x: np.ndarray, factor: str) -> np.ndarray:
    """A factor with its components in rows, ``[(L,) R, i or o]``."""
    return np.moveaxis(x, -1, -2) if factor == "a" else x


def trained_masks(start: ClientParams, spec: LoraSpec) -> dict[str, LoRA]:
    """Which components of either factor are trained, ``bool[(L,) R]`` per path.

    Raises:
      Refused: entries of one component are trained and others not.
    """
    made = {}
    for target in spec.targets:
        a, b = (np.asarray(x) for x in start.adapter[target.path])
        if a.shape[-2] != 1 or b.shape[-1] != 1:
            raise Refused(f"Components of {target.path} are trained in part; messages cannot.")
        shape = (*target.stack, spec.rank)
        made[target.path] = LoRA(
            np.broadcast_to(a[..., 0, :], shape), np.broadcast_to(b[..., 0], shape)
        )
    return made


def as_trainable(masks: Mapping[str, LoRA]) -> dict[str, LoRA]:
    """The masks as booleans that broadcast against the factors."""
    return {path: LoRA(m.a[..., None, :], m.b[..., :, None]) for path, m in masks.items()}


def to_bits(mask: np.ndarray) -> np.ndarray:
    """Write a mask as bits."""
    return np.packbits(mask.reshape(-1))


def from_bits(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Read what `to_bits` has written."""
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def bits_form(target: LoraTarget, spec: LoraSpec) -> Form:
    """The form of the bits of a target's mask."""
    count = int(np.prod((*target.stack, spec.rank)))
    return Form((-(-count // 8),), np.dtype(np.uint8))


def name_of(masks: Mapping[str, np.ndarray], choices: Mapping[str, Any]) -> str:
    """The name of the choice that equals these masks, or ``listed``."""
    for name, choice in choices.items():
        if all(np.array_equal(masks[path], choice[path]) for path in masks):
            return name
    return "listed"
