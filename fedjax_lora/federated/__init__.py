"""Federated training: clients, cohorts, rounds, and what surrounds a method."""

from fedjax_lora.federated.causal_lm import causal_lm
from fedjax_lora.federated.client_update import Local, LocalFn, all_finite, cohort_of, make_local
from fedjax_lora.federated.cohort import Mode, default_clients_per_step, execute, padded_size
from fedjax_lora.federated.local_training import Clients, Report, make_training
from fedjax_lora.federated.objectives import Objective, Score, TokenBatch, text_classification
from fedjax_lora.federated.round import RoundFn, make_round
from fedjax_lora.federated.shape_checks import check_method
from fedjax_lora.federated.sharding import (
    AXIS,
    MODEL,
    base_sharding,
    client_mesh,
    everywhere,
    in_parts,
    place,
)
from fedjax_lora.federated.state import (
    ClientStore,
    FederatedState,
    Head,
    Plan,
    RoundMetrics,
    init_state,
    with_kernels,
)

__all__ = [
    "AXIS",
    "MODEL",
    "ClientStore",
    "Clients",
    "FederatedState",
    "Head",
    "Local",
    "LocalFn",
    "Mode",
    "Objective",
    "Plan",
    "Report",
    "RoundFn",
    "RoundMetrics",
    "Score",
    "TokenBatch",
    "all_finite",
    "base_sharding",
    "causal_lm",
    "check_method",
    "client_mesh",
    "cohort_of",
    "default_clients_per_step",
    "everywhere",
    "execute",
    "in_parts",
    "init_state",
    "make_local",
    "make_round",
    "make_training",
    "padded_size",
    "place",
    "text_classification",
    "with_kernels",
]
