"""Federated LoRA fine-tuning with clients of different ranks, in JAX.

>>> from fedjax_lora import RunConfig
>>> RunConfig().federation.method
'fed_plora'

``fedjax_lora.run(config)`` runs a config to its end; `fedjax_lora.adapters`, `clients` and
`methods` are the parts it is made of.
"""

from typing import TYPE_CHECKING, Any

from fedjax_lora.config import RunConfig
from fedjax_lora.errors import InputError

if TYPE_CHECKING:
    from fedjax_lora.runs import run

__version__ = "0.1.0"
__all__ = ["InputError", "RunConfig", "__version__", "run"]


def __getattr__(name: str) -> Any:
    """Import `run` when it is asked for: the command line's help should not wait for JAX."""
    if name == "run":
        from fedjax_lora.runs import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
