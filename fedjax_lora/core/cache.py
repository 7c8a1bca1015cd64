"""The folder that caches compiled programs, tokens and parsed sources between runs."""

import os
import pathlib


def cache_dir() -> pathlib.Path:
    """Return ``$FEDJAX_LORA_CACHE``, or else ``fedjax_lora`` in the user's cache folder."""
    if configured := os.environ.get("FEDJAX_LORA_CACHE"):
        return pathlib.Path(configured)
    return (
        pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        / "fedjax_lora"
    )


def enable_compilation_cache() -> None:
    """Enable JAX's persistent compilation cache, unless the user has configured one already."""
    import jax  # here: readers of data use the folder without JAX

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
