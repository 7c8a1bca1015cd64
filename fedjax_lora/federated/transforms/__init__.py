"""Update transforms and server optimizers, which combine with any method.

An *update transform* (`TRANSFORMS`) changes the clients' updates before aggregation: clipping,
noise, quantisation, rejection, robust statistics. A *server optimizer* (`SERVER_OPTIMIZERS`) takes
the method's change of the global parameters as a gradient. Both are chosen by specs:

>>> from fedjax_lora.federated import transforms
>>> transforms.TRANSFORMS["clip"](norm=1.0).stage
'client'
"""

from fedjax_lora.federated.transforms.accountant import (
    affordable_rounds,
    make_privacy_report,
    multiplier_for,
    with_multipliers,
)
from fedjax_lora.federated.transforms.base import (
    Attacked,
    Noise,
    TransformFn,
    UpdateTransform,
    apply_transforms,
)
from fedjax_lora.federated.transforms.clip_noise import central_noise, clip, gaussian_noise
from fedjax_lora.federated.transforms.compression import bfloat16, int8, uplink_bytes
from fedjax_lora.federated.transforms.inner_products import inner_products
from fedjax_lora.federated.transforms.products import (
    foolsgold,
    geometric_median,
    krum,
    reject_dissimilar,
)
from fedjax_lora.federated.transforms.registry import (
    TRANSFORMS,
    check_transforms,
    make_transforms,
)
from fedjax_lora.federated.transforms.robust import (
    median,
    norm_bound,
    reject_outliers,
    trimmed_mean,
)
from fedjax_lora.federated.transforms.server_optimizers import (
    SERVER_OPTIMIZERS,
    ServerOptimizer,
    check_method_averages,
    make_server_optimizer,
    server_step,
)

__all__ = [
    "SERVER_OPTIMIZERS",
    "TRANSFORMS",
    "Attacked",
    "Noise",
    "ServerOptimizer",
    "TransformFn",
    "UpdateTransform",
    "affordable_rounds",
    "apply_transforms",
    "bfloat16",
    "central_noise",
    "check_method_averages",
    "check_transforms",
    "clip",
    "foolsgold",
    "gaussian_noise",
    "geometric_median",
    "inner_products",
    "int8",
    "krum",
    "make_privacy_report",
    "make_server_optimizer",
    "make_transforms",
    "median",
    "multiplier_for",
    "norm_bound",
    "reject_dissimilar",
    "reject_outliers",
    "server_step",
    "trimmed_mean",
    "uplink_bytes",
    "with_multipliers",
]
