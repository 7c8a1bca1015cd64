"""Federated LoRA fine-tuning with clients of different ranks, in JAX.

>>> import fedjax_lora as fl
>>> fl.RunConfig().federation.method
'fed_plora'

``fl.run(config)`` runs a config to its end. `fl.lora`, `fl.methods` and `fl.federated` are the
parts for a loop of your own; `fl.models`, `fl.data` and `fl.evaluation` are what a run adds to
them, and `fl.interop` reads and writes adapters of other libraries. Everything is imported when it
is first used, so that ``import fedjax_lora`` does not wait for JAX.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from fedjax_lora.core.version import __version__

if TYPE_CHECKING:
    from fedjax_lora import data, evaluation, federated, interop, lora, methods, models, runs
    from fedjax_lora.core.errors import InputError
    from fedjax_lora.runs.config import RunConfig
    from fedjax_lora.runs.run import run

__all__ = [
    "InputError",
    "RunConfig",
    "__version__",
    "data",
    "evaluation",
    "federated",
    "interop",
    "lora",
    "methods",
    "models",
    "run",
    "runs",
]

# JAX's LAPACK calls on a CPU run in SciPy's OpenBLAS, which is loaded at the first of them and then
# reads this. Its threads only wait for each other on matrices as thin as ours: one aggregation of
# 12 layers took 1.5 to 30 s with two threads and 0.2 s with one. A value set by the user is kept.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_MODULES = {
    "InputError": "fedjax_lora.core.errors",
    "RunConfig": "fedjax_lora.runs.config",
    "run": "fedjax_lora.runs.run",
}
"""The modules of the names that are not modules themselves."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    elif name in __all__:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
