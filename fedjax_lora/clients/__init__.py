"""Local training of clients and the ways to execute a cohort of them."""

from fedjax_lora.clients.cohort import Mode, default_wave, execute, padded_size
from fedjax_lora.clients.completion import causal_lm
from fedjax_lora.clients.local import Clients, Report, make_training
from fedjax_lora.clients.mesh import (
    AXIS,
    MODEL,
    base_sharding,
    client_mesh,
    everywhere,
    in_parts,
    place,
)
from fedjax_lora.clients.objective import Objective, Score, TokenBatch, text_classification

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
