"""Claims that are decided by two clients with one target, without a run."""

import jax
import jax.numpy as jnp

from experiments.tools.claims import NOT_REPRODUCED, REPRODUCED, Finding
from experiments.tools.study import Results
from fedjax_lora import methods
from fedjax_lora.core.types import Adapter, LoRA
from fedjax_lora.federated import diagnostics
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods import Cohort, ServerState

FACTOR = 3.0


def aggregated(spec: str, lora_spec: LoraSpec, result: Adapter) -> tuple[Adapter, float]:
    """Aggregate clients of full rank; returns the server's adapter and the aggregation noise."""
    method = methods.make(spec, lora_spec)
    count = result["x"].a.shape[0]
    ones = jnp.ones(count)
    ranks = jnp.full(count, lora_spec.rank, jnp.int32)
    cohort = Cohort(jnp.arange(count), ranks, ones, ones, jnp.int32(0), jax.random.key(0))
    server = ServerState(jax.tree.map(lambda x: jnp.zeros_like(x[0]), result), {})
    start = method.broadcast(server, (), cohort)
    after = method.aggregate(server, (), cohort, start, result).server
    found = diagnostics.aggregation_noise(lora_spec, server, cohort, start, result, after)
    return after.adapter, float(found.noise)


def bound(results: Results) -> Finding:
    """Compare the aggregation noise with the mean distance of both factors from their means.

    One module with factors of one number, +3 for one client and -3 for the other.
    """
    lora_spec = LoraSpec(targets=(LoraTarget("x", 1, 1, None),), rank=1, alpha=1.0)
    factor = FACTOR * jnp.array([1.0, -1.0]).reshape(2, 1, 1)
    _, noise = aggregated("fed_plora", lora_spec, {"x": LoRA(factor, factor)})
    most = float(2 * jnp.mean(jnp.abs(factor - factor.mean(axis=0, keepdims=True))))
    ours = f"not for two clients with factors of {FACTOR:+g} and {-FACTOR:+g}: noise {noise:g}, "
    return Finding(f"{ours}bound {most:g}", REPRODUCED if noise <= most else NOT_REPRODUCED)


def equal_ranks(results: Results) -> Finding:
    """Compare Fed-PLoRA and FedIT, both with equal weights, on the same random factors."""
    lora_spec = LoraSpec(targets=(LoraTarget("x", 16, 8, None),), rank=4, alpha=4.0)
    a, b = (jax.random.normal(jax.random.key(n), (2, *s)) for n, s in enumerate(((16, 4), (4, 8))))
    ours, theirs = (
        aggregated(spec, lora_spec, {"x": LoRA(a, b)})[0]["x"]
        for spec in ("fed_plora", "fedit(weights='uniform')")
    )
    apart = max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(ours, theirs, strict=True))
    verdict = REPRODUCED if apart < 1e-6 else NOT_REPRODUCED
    return Finding(f"random factors of size 1 are averaged to within {apart:g}", verdict)
