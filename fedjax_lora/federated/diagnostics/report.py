"""All diagnostics of a round as JSON values, for the record of the round."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lora.core import quantization, trees
from fedjax_lora.core.types import Adapter, Array, Kernels, Params
from fedjax_lora.federated.diagnostics.client_memory import estimate_client_memory
from fedjax_lora.federated.diagnostics.noise import aggregation_noise, initialization_noise
from fedjax_lora.federated.diagnostics.similarity import module_cosines
from fedjax_lora.federated.diagnostics.spectrum import (
    delta_spectrum,
    effective_rank,
    energy_beyond,
    layer_mean,
    stable_rank,
)
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import ClientInit, Cohort, ServerState

DiagnosticsFn = Callable[
    [Params, Params, ServerState, Cohort, ClientInit, Adapter, ServerState], dict[str, Any]
]
"""``(base, head, before, cohort, start, result, after)`` to JSON values, by name."""


def make_diagnostics(
    spec: LoraSpec,
    *,
    train_head: bool,
    optimizer: optax.GradientTransformation,
    clients_hold_kernels: bool = True,
) -> DiagnosticsFn:
    """Make the function that computes the diagnostics of a round, the same for every method.

    Its record contains ``init_noise`` (mean over the participants), ``agg_noise``, ``ideal_norm``
    and the ratios ``init_ratio`` and ``agg_ratio`` of the noises to it; ``energy``, whose entry
    `r - 1` is the share of the global delta's energy beyond rank `r`, for `r` up to `R`;
    ``stable_rank`` and ``effective_rank``, means over layers; ``same_cosine`` and ``cross_cosine``;
    ``client_bytes_mean`` and ``client_bytes_max`` over the participants. Undefined values (a cosine
    without a pair, a ratio to 0) are None.

    Args:
      spec: the adapted layers.
      train_head: whether clients train the head.
      optimizer: of local training.
      clients_hold_kernels: of the method, see `fedjax_lora.methods.Method`.
    """
    compute = jax.jit(functools.partial(_compute, spec, clients_hold_kernels))

    def diagnose(
        base: Params,
        head: Params,
        before: ServerState,
        cohort: Cohort,
        start: ClientInit,
        result: Adapter,
        after: ServerState,
    ) -> dict[str, Any]:
        leaves = trees.flat(base)
        kernels = {
            path: quantization.dequantize(leaves[f"{path}/kernel"]) for path in after.kernels
        }
        values = jax.device_get(compute(kernels, before, cohort, start, result, after))
        memory = estimate_client_memory(
            spec, start, base=base, head=head, train_head=train_head, optimizer=optimizer
        )
        size = memory.total[np.asarray(cohort.weight) > 0]
        return {name: _plain(value.tolist()) for name, value in values.items()} | {
            "client_bytes_mean": float(size.mean()) if len(size) else None,
            "client_bytes_max": int(size.max()) if len(size) else None,
        }

    return diagnose


def _compute(
    spec: LoraSpec,
    clients_hold_kernels: bool,
    base: Kernels,
    before: ServerState,
    cohort: Cohort,
    start: ClientInit,
    result: Adapter,
    after: ServerState,
) -> dict[str, Array]:
    """Diagnostics computed on the device; NaN where they are not defined."""
    present = (cohort.weight > 0).astype(jnp.float32)
    held = None if clients_hold_kernels else base
    init_noise = initialization_noise(spec, before, start, held=held)
    init = trees.weighted_mean(init_noise, present, jnp.zeros(()))
    aggregation = aggregation_noise(spec, before, cohort, start, result, after, held=held)
    spectrum = delta_spectrum(spec, after, base)
    over_layers = lambda fn: layer_mean(spectrum, {p: fn(s) for p, s in spectrum.items()})  # noqa: E731
    cosines = module_cosines(cohort, start, result)
    undefined = jnp.full((), jnp.nan)
    return {
        "init_noise": init,
        "agg_noise": aggregation.noise,
        "ideal_norm": aggregation.ideal,
        "init_ratio": trees.safe_divide(init, aggregation.ideal, undefined),
        "agg_ratio": trees.safe_divide(aggregation.noise, aggregation.ideal, undefined),
        "energy": energy_beyond(spectrum, range(1, spec.rank + 1)),
        "stable_rank": over_layers(stable_rank),
        "effective_rank": over_layers(effective_rank),
        "same_cosine": cosines.same,
        "cross_cosine": cosines.cross,
    }


def _plain(value: float | list[float]) -> Any:
    """Convert to a JSON value, with None for NaN."""
    if isinstance(value, list):
        return [_plain(x) for x in value]
    return None if math.isnan(value) else value
