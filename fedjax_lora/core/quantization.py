"""How the frozen base's matrices are kept in memory: in full, in half, or as codes.

Codes are `qwix.QArray` leaves of the parameter tree, with the shape of what they stand for: a
kernel stays where it was, and so does everything that looks for it by path. A layer decodes its
own kernel when it is used (`promote`), so no more than that is ever in memory in full.
"""

import functools
import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from fedjax_lora.core.errors import InputError

STORAGES = ("float32", "bfloat16", "int8", "nf4")
_BLOCK = 64  # inputs that share one scale under nf4, as in QLoRA


def check(storage: str) -> None:
    """Refuse a storage that does not exist, or for which a package is missing.

    Raises:
      InputError: either.
    """
    if storage not in STORAGES:
        raise InputError(f"storage is {storage!r} but must be one of {', '.join(STORAGES)}.")
    if storage in ("int8", "nf4") and importlib.util.find_spec("qwix") is None:
        raise InputError(
            f"storage {storage!r} needs the package qwix; install fedjax-lora[quantized]."
        )


def dtype_of(path: str, storage: str) -> Any:
    """What a parameter is kept in, or encoded from: only matrices and tables are ever reduced.

    The task head is trained, and vectors cost nothing: both stay float32. Tables are bfloat16
    where kernels are codes.
    """
    reduced = path.endswith(("/kernel", "/embedding")) and not path.startswith("head/")
    return jnp.bfloat16 if reduced and storage != "float32" else jnp.float32


def is_encoded(path: str, storage: str) -> bool:
    """Whether the parameter at a path is kept as codes."""
    kernel = path.endswith("/kernel") and not path.startswith("head/")
    return kernel and storage in ("int8", "nf4")


@functools.partial(jax.jit, static_argnames="storage")
def encode(kernel: Float[Array, "i o"], storage: str) -> Any:
    """A kernel as codes.

    ``int8``: one scale per output (absolute maximum). ``nf4``: the 16 quantiles of a normal
    distribution (QLoRA, arXiv 2305.14314), one scale per output and block of 64 inputs.
    """
    import qwix

    if storage == "int8":
        return qwix.quantize(kernel, jnp.int8, channelwise_axes=(1,))
    block = math.gcd(_BLOCK, kernel.shape[0])
    return qwix.quantize(kernel, "nf4", channelwise_axes=(1,), tiled_axes={0: block})


def dequantize(kernel: Any, dtype: Any = jnp.float32) -> Array:
    """A kernel, however it is stored, as an array."""
    if not _has_codes(kernel):
        return jnp.asarray(kernel).astype(dtype)
    import qwix

    return qwix.dequantize(kernel.astype(dtype))


def _has_codes(value: Any) -> bool:
    return hasattr(value, "qvalue")


def promote(*values: Any, dtype: Any = None, inexact: bool = True) -> list[Array | None]:
    """``flax.linen.dtypes.promote_dtype`` for a layer whose kernel may be stored as codes."""
    arrays = [dequantize(x, dtype or jnp.float32) if _has_codes(x) else x for x in values]
    return promote_dtype(*arrays, dtype=dtype, inexact=inexact)
