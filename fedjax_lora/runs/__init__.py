"""Runs: one config, one folder, from loading to outputs.

`fedjax_lora.run` runs a config; the modules here are its parts. They are imported when they are
first used: a config needs no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_lora.runs import config, cost, evaluate, outputs, run, sweep

__all__ = ["config", "cost", "evaluate", "outputs", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """Import a module when it is first used (PEP 562)."""
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
