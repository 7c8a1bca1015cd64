"""Check of the backend that JAX was told to use."""

import os
import pathlib

import jax

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.untrusted_files import first_line

__all__ = ["check_backend", "multiplies_bfloat16"]

_PROCESSOR = pathlib.Path("/proc/cpuinfo")
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last one on Arm


def check_backend() -> None:
    """Refuse settings of JAX with which nothing here can run, before anything is loaded.

    Raises:
      InputError: the platforms that JAX was told to use are not there, or 64-bit numbers are on.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError, ValueError) as error:
        named = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms
        raise InputError(
            f"JAX cannot use JAX_PLATFORMS={named} ({first_line(error)}); unset it, or install JAX "
            "for that platform."
        ) from error
    if jax.config.jax_enable_x64:
        raise InputError(
            "JAX_ENABLE_X64 is on, and adapters and models are computed in 32 bits here; unset it "
            "(in Python: jax.config.update('jax_enable_x64', False))."
        )


def multiplies_bfloat16(file: pathlib.Path = _PROCESSOR) -> bool | None:
    """Return whether this machine's processor has products of bfloat16; None if it does not say.

    Without them XLA converts the factors to float32, which takes longer than float32 alone.

    Args:
      file: what Linux says of the processor.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    told = (line.partition(":") for line in lines)
    flags = {word for name, _, rest in told if name.strip() in ("flags", "Features")
             for word in rest.split()}  # fmt: skip
    return bool(flags & _BFLOAT16) if flags else None
