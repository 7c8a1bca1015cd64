"""Versions and devices of this process: what numbers depend on besides the config."""

import importlib.metadata
import platform

import jax

from fedjax_lora.core.json_values import Record
from fedjax_lora.core.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "transformers", "datasets", "numpy")


def environment() -> Record:
    """Return the versions of Python and packages, and the devices."""
    versions = {"fedjax-lora": __version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "packages": versions,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
