"""Federated LoRA fine-tuning with clients of different ranks, in JAX.

>>> from fedjax_lora import RunConfig
>>> RunConfig().federation.method
'fed_plora'

``fedjax_lora.run(config)`` runs a config to its end; `fedjax_lora.lora`, `clients` and
`methods` are the parts it is made of.
"""

import os
from typing import TYPE_CHECKING, Any

from fedjax_lora.core.errors import InputError
from fedjax_lora.runs.config import RunConfig

if TYPE_CHECKING:
    from fedjax_lora.runs.run import run

__version__ = "0.1.0"
__all__ = ["InputError", "RunConfig", "__version__", "run"]

# JAX's LAPACK calls on a CPU run in SciPy's OpenBLAS, which is loaded at the first of them and then
# reads this. Its threads only wait for each other on matrices as thin as ours: one aggregation of
# 12 layers took 1.5 to 30 s with two threads and 0.2 s with one. A value set by the user is kept.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def __getattr__(name: str) -> Any:
    """Import `run` when it is asked for: the command line's help should not wait for JAX."""
    if name == "run":
        from fedjax_lora.runs.run import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
