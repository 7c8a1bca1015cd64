"""Local training of clients and the ways to execute a cohort of them."""

from fedjax_lora.federated.cohort import Mode, default_wave, execute, padded_size
from fedjax_lora.federated.causal_lm import causal_lm
from fedjax_lora.federated.local_training import Clients, Report, make_training
from fedjax_lora.federated.sharding import AXIS, MODEL, base_sharding, client_mesh, everywhere, in_parts, place
from fedjax_lora.federated.objectives import Objective, Score, TokenBatch, text_classification

__all__ = [
    "AXIS",
    "MODEL",
    "Clients",
    "Mode",
    "Objective",
    "Report",
    "Score",
    "TokenBatch",
    "base_sharding",
    "causal_lm",
    "client_mesh",
    "default_wave",
    "everywhere",
    "execute",
    "in_parts",
    "make_training",
    "padded_size",
    "place",
    "text_classification",
]
