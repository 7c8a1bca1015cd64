"""All measurements of a round as plain numbers, for the record of the round."""

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
"""``(base, head, before, cohort, start, result, after)`` to JSON values."""


def make_diagnostics(
    spec: LoraSpec,
    *,
    train_head: bool,
    optimizer: optax.GradientTransformation,
) -> DiagnosticsFn:
    """A function that measures a round, whatever its method.

    Its record holds ``init_noise`` (mean over the participants), ``agg_noise``, ``ideal_norm`` and
    the ratios ``init_ratio`` and ``agg_ratio`` of the noises to it; ``energy``, whose entry `r - 1`
    is the share of the global delta's energy beyond rank `r`, for `r` up to `R`; ``stable_rank``
    and ``effective_rank``, means over layers; ``same_cosine`` and ``cross_cosine``;
    ``client_bytes_mean`` and ``client_bytes_max`` over the participants. What is not defined (a
    cosine without a pair, a ratio to nothing) is None.

    Args:
      spec: the sites.
      train_head: whether clients train it.
      optimizer: of local training.
    """

    @jax.jit
    def numbers(
        base: Kernels,
        before: ServerState,
        cohort: Cohort,
        start: ClientInit,
        result: Adapter,
        after: ServerState,
    ) -> dict[str, Array]:
        each = initialization_noise(spec, before, start)
        present = (cohort.weight > 0).astype(jnp.float32)
        init = trees.weighted_mean(each, present, jnp.zeros(()))
        aggregation = aggregation_noise(spec, before, cohort, start, result, after)
        found = delta_spectrum(spec, after, base)
        over_layers = lambda fn: layer_mean(found, {p: fn(s) for p, s in found.items()})  # noqa: E731
        cosines = module_cosines(cohort, start, result)
        nothing = jnp.full((), jnp.nan)
        return {
            "init_noise": init,
            "agg_noise": aggregation.noise,
            "ideal_norm": aggregation.ideal,
            "init_ratio": trees.safe_divide(init, aggregation.ideal, nothing),
            "agg_ratio": trees.safe_divide(aggregation.noise, aggregation.ideal, nothing),
            "energy": energy_beyond(found, range(1, spec.rank + 1)),
            "stable_rank": over_layers(stable_rank),
            "effective_rank": over_layers(effective_rank),
            "same_cosine": cosines.same,
            "cross_cosine": cosines.cross,
        }

    def measure(
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
        found = jax.device_get(numbers(kernels, before, cohort, start, result, after))
        memory = estimate_client_memory(
            spec, start, base=base, head=head, train_head=train_head, optimizer=optimizer
        )
        size = memory.total[np.asarray(cohort.weight) > 0]
        return {name: _plain(value.tolist()) for name, value in found.items()} | {
            "client_bytes_mean": float(size.mean()) if len(size) else None,
            "client_bytes_max": int(size.max()) if len(size) else None,
        }

    return measure


def _plain(value: float | list[float]) -> Any:
    """A JSON value: NaN becomes None."""
    if isinstance(value, list):
        return [_plain(x) for x in value]
    return None if math.isnan(value) else value
