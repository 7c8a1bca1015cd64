"""Rotary position embeddings and their context extensions, as `transformers` defines them."""

import dataclasses
import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding of a model's queries and keys (arXiv 2104.09864).

    Attributes:
      type: ``default``; ``linear`` (positions divided by `factor`); ``dynamic`` (NTK: a larger
        base for texts beyond the window); ``llama3`` (low frequencies divided by `factor`);
        ``yarn`` (arXiv 2309.00071).
      theta: the base of the wavelengths.
      factor: factor by which the context window is stretched.
      original_positions: the context window before stretching (llama3, yarn).
      low_frequency: llama3: wavelengths above ``original_positions / low_frequency`` are stretched.
      high_frequency: llama3: wavelengths below ``original_positions / high_frequency`` are not.
      beta_fast: yarn: frequencies with at least so many turns within the window do not change.
      beta_slow: yarn: frequencies with at most so many turns are stretched completely.
      attention_factor: yarn: multiplier of sines and cosines.
      truncate: yarn: whether the boundaries between frequencies are rounded to whole numbers.
    """

    type: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_positions: int = 1
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


def problems(rope: Rope) -> Iterator[str]:
    """Yield a message for every field that is out of range."""
    if rope.type not in ROPE_TYPES:
        yield f"rope type is {rope.type!r} but must be one of {', '.join(ROPE_TYPES)}"
    if not rope.theta > 1:
        yield f"rope theta is {rope.theta} but must be above 1"
    for name in ("factor", "original_positions", "beta_fast", "beta_slow", "attention_factor"):
        if not getattr(rope, name) > 0:
            yield f"rope {name} is {getattr(rope, name)} but must be above 0"
    if rope.type == "llama3" and not rope.high_frequency > rope.low_frequency > 0:
        yield (
            f"rope frequency factors are {rope.low_frequency:g} and {rope.high_frequency:g} but "
            "must be positive, the high one above the low one"
        )


def angles(
    rope: Rope, positions: Int[Array, "n t"], *, width: int, window: int
) -> Float[Array, "n t {width}//2"]:
    """Rotation angle of each pair of features, in radians.

    Args:
      rope: the position embedding.
      positions: positions of the tokens in their texts.
      width: features of a head.
      window: the model's ``max_positions``, beyond which ``dynamic`` stretches. The stretch depends
        on the length of each text, not on the longest text of the batch as in `transformers`.
    """
    at = positions.astype(jnp.float32)[:, :, None]
    if rope.type != "dynamic":
        return at * _frequencies(rope, width)
    length = jnp.maximum(at.max(axis=1) + 1.0, float(window))  # [n, 1]
    stretch = rope.factor * length / window - (rope.factor - 1.0)
    theta = rope.theta * stretch ** (width / (width - 2))
    return at * (1.0 / theta ** _exponents(width)[None])[:, None, :]


def rotate(
    x: Float[Array, "n t heads d"], turn: Float[Array, "n t d//2"], factor: float
) -> Float[Array, "n t heads d"]:
    """Rotate the pairs ``(x[j], x[j + d/2])`` in float32; the result has the dtype of `x`."""
    cos, sin = (factor * f(turn)[:, :, None, :] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _exponents(width: int) -> np.ndarray:
    # float32, as in the implementations that models were trained with: at large positions the last
    # bit of a frequency matters.
    return np.arange(0, width, 2, dtype=np.float32) / np.float32(width)


def _frequencies(rope: Rope, width: int) -> np.ndarray:
    """Radians per position, ``float32[1, 1, width // 2]``."""
    plain = np.float32(1.0) / np.float32(rope.theta) ** _exponents(width)
    stretch = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}.get(rope.type)
    value = plain if stretch is None else stretch(rope, plain, width)
    return value.astype(np.float32)[None, None]


def _linear(rope: Rope, plain: np.ndarray, width: int) -> np.ndarray:
    return plain / rope.factor


def _llama3(rope: Rope, plain: np.ndarray, width: int) -> np.ndarray:
    turns = rope.original_positions * plain / (2 * math.pi)  # within the original window
    low, high = rope.low_frequency, rope.high_frequency
    unchanged = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * unchanged + plain / rope.factor * (1.0 - unchanged)


def _yarn(rope: Rope, plain: np.ndarray, width: int) -> np.ndarray:
    def feature(turns: float) -> float:
        """Index, as a real number, of the feature with so many turns within the window."""
        wavelength = rope.original_positions / (turns * 2 * math.pi)
        return width * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = feature(rope.beta_fast), feature(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 if low == high else 0.0
    stretched = np.clip((np.arange(width // 2) - low) / (high - low), 0.0, 1.0)
    return plain / rope.factor * stretched + plain * (1.0 - stretched)
