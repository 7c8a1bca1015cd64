"""Seconds of a function on a device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def seconds(function: Callable[..., Any], *args: Any, repeats: int = 5) -> tuple[float, float]:
    """Time a compiled function.

    Args:
      function: returns arrays.
      *args: its arguments, which it does not donate.
      repeats: of the measurement, after a first call.

    Returns:
      Seconds of the first call, which compiles, and the median of the others.
    """
    first, *others = [_once(function, *args) for _ in range(1 + repeats)]
    return first, statistics.median(others)


def _once(function: Callable[..., Any], *args: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - began


def peak_bytes() -> int | None:
    """Return the most bytes that were in use on the first device, where it counts them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
