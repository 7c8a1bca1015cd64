"""What can be put around any method: on the clients' updates before it, on the server's after it.

An *update* (`UPDATES`) changes what the clients send: clipping, noise, quantisation, rejection,
robust statistics. A *server optimizer* (`SERVER_OPTIMIZERS`) follows the change that the method
makes as if it were a gradient. Both are chosen by specs, like everything else:

>>> from fedjax_lora import around
>>> around.UPDATES["clip"](norm=1.0).by
'client'
"""

from fedjax_lora.federated.transforms.accountant import account
from fedjax_lora.federated.transforms.base import Noise, Update, apply
from fedjax_lora.federated.transforms.compression import up_bytes
from fedjax_lora.federated.transforms.registry import UPDATES, make_updates
from fedjax_lora.federated.transforms.server_optimizers import (
    SERVER_OPTIMIZERS,
    ServerOptimizer,
    follow,
    make_server_optimizer,
)

__all__ = [
    "SERVER_OPTIMIZERS",
    "UPDATES",
    "Noise",
    "ServerOptimizer",
    "Update",
    "account",
    "apply",
    "follow",
    "make_server_optimizer",
    "make_updates",
    "up_bytes",
]
