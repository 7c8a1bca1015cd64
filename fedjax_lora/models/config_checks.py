"""Checks shared by the configs of encoders and decoders."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedjax_lora.core.errors import unknown
from fedjax_lora.models.activations import ACTIVATIONS

POOLINGS = ("family", "mean")
DTYPES = ("float32", "bfloat16")
LARGEST: Mapping[str, int] = {
    "vocab_size": 2**24,
    "hidden": 2**17,
    "layers": 1000,
    "heads": 2**12,
    "intermediate": 2**20,
    "max_positions": 2**24,
}
"""Upper limits above any real model's sizes: configs are untrusted files that allocate arrays."""


def problems(config: Any, *, families: Iterable[str], rates: Iterable[str]) -> Iterator[str]:
    """Yield a message for every field, shared by both configs, that is out of range.

    Args:
      config: an `EncoderConfig` or a `DecoderConfig`.
      families: the supported model families.
      rates: names of the fields that are dropout rates.
    """
    for name, value, choices in (
        ("model family", config.family, families),
        ("activation", config.activation, ACTIVATIONS),
    ):
        if value not in list(choices):  # a list, because the value may not be hashable
            yield str(unknown(name, str(value), choices)).rstrip(".")
    yield from sizes(config, LARGEST)
    for name in rates:
        if not 0 <= getattr(config, name) < 1:
            yield f"{name} is {getattr(config, name)} but must be at least 0 and below 1"
    if not 0 <= config.initializer_range < math.inf:
        yield f"initializer_range is {config.initializer_range} but must be at least 0 and finite"
    for name, choices in (("pooling", POOLINGS), ("dtype", DTYPES)):
        if getattr(config, name) not in choices:
            yield f"{name} is {getattr(config, name)!r} but must be one of {', '.join(choices)}"
    if config.scan_unroll is not None and config.scan_unroll < 1:
        yield f"scan_unroll is {config.scan_unroll} but must be at least 1, or None to choose"


def sizes(config: Any, largest: Mapping[str, int], *, least: int = 1) -> Iterator[str]:
    """Yield a message for every size outside its limits."""
    for name, limit in largest.items():
        if not least <= getattr(config, name) <= limit:
            yield f"{name} is {getattr(config, name)} but must be at least {least}, at most {limit}"
