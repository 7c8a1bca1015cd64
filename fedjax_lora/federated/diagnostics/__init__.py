"""Diagnostics of a round, computed on effective weights by the same code for every method."""

from fedjax_lora.federated.diagnostics.client_memory import (
    ClientMemory,
    estimate_client_memory,
    trained_entries,
)
from fedjax_lora.federated.diagnostics.noise import (
    AggregationNoise,
    aggregation_noise,
    initialization_noise,
)
from fedjax_lora.federated.diagnostics.report import DiagnosticsFn, make_diagnostics
from fedjax_lora.federated.diagnostics.similarity import Cosines, module_cosines
from fedjax_lora.federated.diagnostics.spectrum import (
    Spectrum,
    delta_spectrum,
    effective_rank,
    energy_beyond,
    layer_mean,
    stable_rank,
)

__all__ = [
    "AggregationNoise",
    "ClientMemory",
    "Cosines",
    "DiagnosticsFn",
    "Spectrum",
    "aggregation_noise",
    "delta_spectrum",
    "effective_rank",
    "energy_beyond",
    "estimate_client_memory",
    "initialization_noise",
    "layer_mean",
    "make_diagnostics",
    "module_cosines",
    "stable_rank",
    "trained_entries",
]
