"""Federated training: clients, cohorts, rounds, and what surrounds a method."""

from fedjax_lora.federated.causal_lm import causal_lm
from fedjax_lora.federated.client_update import (
    ClientUpdateFn,
    CohortUpdate,
    all_finite,
    cohort_of,
    make_client_update,
)
from fedjax_lora.federated.cohorts import cohort
from fedjax_lora.federated.execution import (
    DEFAULT_EXECUTION,
    Execution,
    Mode,
    default_clients_per_step,
    execute,
)
from fedjax_lora.federated.objectives import Objective, Score, TokenBatch, text_classification
from fedjax_lora.federated.round import CompiledRound, Round, RoundFn, compile_round, make_round
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
    RoundInput,
    RoundMetrics,
    global_params,
    init,
    init_state,
    with_head,
)
from fedjax_lora.federated.training import (
    ClientHooks,
    ClientMetrics,
    Clients,
    LocalTraining,
    TrainFn,
    Training,
    local_training,
)

__all__ = [
    "AXIS",
    "DEFAULT_EXECUTION",
    "MODEL",
    "ClientHooks",
    "ClientMetrics",
    "ClientStore",
    "ClientUpdateFn",
    "Clients",
    "CohortUpdate",
    "CompiledRound",
    "Execution",
    "FederatedState",
    "Head",
    "LocalTraining",
    "Mode",
    "Objective",
    "Plan",
    "Round",
    "RoundFn",
    "RoundInput",
    "RoundMetrics",
    "Score",
    "TokenBatch",
    "TrainFn",
    "Training",
    "all_finite",
    "base_sharding",
    "causal_lm",
    "check_method",
    "client_mesh",
    "cohort",
    "cohort_of",
    "compile_round",
    "default_clients_per_step",
    "everywhere",
    "execute",
    "global_params",
    "in_parts",
    "init",
    "init_state",
    "local_training",
    "make_client_update",
    "make_round",
    "place",
    "text_classification",
    "with_head",
]
