"""Measurements of a round, on effective weights and by the same code for every method."""

from fedjax_lora.federated.diagnostics.client_memory import (
    Footprint,
    client_footprint,
    trained_entries,
)
from fedjax_lora.federated.diagnostics.noise import (
    Aggregation,
    aggregation_noise,
    initialization_noise,
)
from fedjax_lora.federated.diagnostics.report import Measure, make_measure
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
    "Aggregation",
    "Cosines",
    "Footprint",
    "Measure",
    "Spectrum",
    "aggregation_noise",
    "client_footprint",
    "delta_spectrum",
    "effective_rank",
    "energy_beyond",
    "initialization_noise",
    "layer_mean",
    "make_measure",
    "module_cosines",
    "stable_rank",
    "trained_entries",
]
