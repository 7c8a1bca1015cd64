"""Local training of clients and the ways to execute a cohort of them."""

from fedjax_lora.clients.cohort import (
    AXIS,
    Mode,
    client_mesh,
    default_wave,
    everywhere,
    execute,
    padded_size,
)
from fedjax_lora.clients.completion import causal_lm
from fedjax_lora.clients.local import Clients, Report, make_training
from fedjax_lora.clients.objective import Objective, Score, TokenBatch, text_classification

__all__ = [
    "AXIS",
    "Clients",
    "Mode",
    "Objective",
    "Report",
    "Score",
    "TokenBatch",
    "causal_lm",
    "client_mesh",
    "default_wave",
    "everywhere",
    "execute",
    "make_training",
    "padded_size",
    "text_classification",
]
