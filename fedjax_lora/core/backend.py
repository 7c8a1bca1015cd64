"""Check of the backend that JAX was told to use."""

import os

import jax

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.untrusted_files import first_line

__all__ = ["check_backend"]


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
