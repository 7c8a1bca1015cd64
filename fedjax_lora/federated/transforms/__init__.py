"""What can be put around any method: on the clients' updates before it, on the server's after it.

An *update* (`TRANSFORMS`) changes what the clients send: clipping, noise, quantisation, rejection,
robust statistics. A *server optimizer* (`SERVER_OPTIMIZERS`) follows the change that the method
makes as if it were a gradient. Both are chosen by specs, like everything else:

>>> from fedjax_lora.federated import transforms
>>> transforms.TRANSFORMS["clip"](norm=1.0).stage
'client'
"""

from fedjax_lora.federated.transforms.accountant import make_privacy_report
from fedjax_lora.federated.transforms.base import Noise, UpdateTransform, apply_transforms
from fedjax_lora.federated.transforms.compression import uplink_bytes
from fedjax_lora.federated.transforms.registry import TRANSFORMS, make_transforms
from fedjax_lora.federated.transforms.server_optimizers import (
    SERVER_OPTIMIZERS,
    ServerOptimizer,
    make_server_optimizer,
    server_step,
)

__all__ = [
    "SERVER_OPTIMIZERS",
    "TRANSFORMS",
    "Noise",
    "ServerOptimizer",
    "UpdateTransform",
    "apply_transforms",
    "make_privacy_report",
    "make_server_optimizer",
    "make_transforms",
    "server_step",
    "uplink_bytes",
]
