"""Storage of the frozen base's matrices: float32, bfloat16, or quantized codes.

Quantized kernels are `qwix.QArray` leaves of the parameter tree. Such a leaf has the path and the
shape of the kernel it encodes, so code that looks up parameters by path does not change. A layer
decodes its own kernel when it is used (`promote`); no more than that is in memory in full.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.optional_packages import is_installed
from fedjax_lora.core.types import PyTree

STORAGES = ("float32", "bfloat16", "int8", "nf4")
_BLOCK = 64  # inputs that share one scale in nf4, as in QLoRA


def check(storage: str) -> None:
    """Check that a storage exists and that its package is installed.

    Raises:
      InputError: unknown storage, or ``qwix`` is missing.
    """
    if storage not in STORAGES:
        raise InputError(f"storage is {storage!r} but must be one of {', '.join(STORAGES)}.")
    if storage in ("int8", "nf4") and not is_installed("qwix"):
        raise InputError(
            f"storage {storage!r} needs the package qwix; install fedjax-lora[quantized]."
        )


def dtype_of(path: str, storage: str) -> DTypeLike:
    """Dtype in which a parameter is stored, or from which it is quantized.

    Only kernels and embedding tables are reduced. The task head is trained, and vectors are small:
    both stay float32. Embedding tables are bfloat16 where kernels are quantized.
    """
    reduced = path.endswith(("/kernel", "/embedding")) and not path.startswith("head/")
    return jnp.bfloat16 if reduced and storage != "float32" else jnp.float32


def is_encoded(path: str, storage: str) -> bool:
    """Whether the parameter at a path is stored quantized."""
    kernel = path.endswith("/kernel") and not path.startswith("head/")
    return kernel and storage in ("int8", "nf4")


@functools.partial(jax.jit, static_argnames="storage")
def encode(kernel: Float[Array, "i o"], storage: str) -> PyTree:
    """Quantize a kernel.

    ``int8``: one scale per output (absolute maximum). ``nf4``: the 16 quantiles of a normal
    distribution (QLoRA, arXiv 2305.14314), one scale per output and block of 64 inputs.

    Args:
      kernel: ``[i, o]``, floating point.
      storage: ``int8`` or ``nf4``.

    Returns:
      A `qwix.QArray` of the kernel's shape.
    """
    import qwix

    if storage == "int8":
        return qwix.quantize(kernel, jnp.int8, channelwise_axes=(1,))
    block = math.gcd(_BLOCK, kernel.shape[0])
    return qwix.quantize(kernel, "nf4", channelwise_axes=(1,), tiled_axes={0: block})


def dequantize(kernel: PyTree, dtype: DTypeLike = jnp.float32) -> Array:
    """Decode a kernel, or convert one that is not quantized to ``dtype``."""
    if not is_quantized(kernel):
        return jnp.asarray(kernel).astype(dtype)
    import qwix

    return qwix.dequantize(kernel.astype(dtype))


def is_quantized(value: Any) -> bool:
    """Return whether a kernel is stored as codes."""
    return hasattr(value, "qvalue")


def promote(
    *values: PyTree, dtype: DTypeLike | None = None, inexact: bool = True
) -> list[Array | None]:
    """Like ``flax.linen.dtypes.promote_dtype``, for a layer whose kernel may be quantized."""
    arrays = [dequantize(x, dtype or jnp.float32) if is_quantized(x) else x for x in values]
    return promote_dtype(*arrays, dtype=dtype, inexact=inexact)
