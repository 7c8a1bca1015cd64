"""Where compiled programs and tokens are kept between runs."""

import os
import pathlib

import jax


def cache_dir() -> pathlib.Path:
    """``$FEDJAX_LORA_CACHE``, else ``fedjax_lora`` in the user's cache folder."""
    if own := os.environ.get("FEDJAX_LORA_CACHE"):
        return pathlib.Path(own)
    return (
        pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        / "fedjax_lora"
    )


def enable_compilation_cache() -> None:
    """Use JAX's persistent compilation cache, unless the user has set one up already."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
