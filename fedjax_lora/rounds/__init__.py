"""One federated round as one compiled function.

``state, metrics = round_fn(base, data, state, plan, key)``: broadcast, local training of the whole
cohort, rejection of broken updates, what else is put around the method (`fedjax_lora.around`), and
aggregation. Ranks, members, weights, batches, learning rate and random choices are data: the
function compiles once.
"""

from fedjax_lora.federated.shape_checks import check_method
from fedjax_lora.federated.client_update import Local, LocalFn, all_finite, cohort_of, make_local
from fedjax_lora.federated.round import RoundFn, make_round
from fedjax_lora.federated.state import ClientStore, FederatedState, Head, Plan, RoundMetrics, init_state, with_kernels

__all__ = [
    "ClientStore",
    "FederatedState",
    "Head",
    "Local",
    "LocalFn",
    "Plan",
    "RoundFn",
    "RoundMetrics",
    "all_finite",
    "check_method",
    "cohort_of",
    "init_state",
    "make_local",
    "make_round",
    "with_kernels",
]
