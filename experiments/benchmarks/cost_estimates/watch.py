"""Measure the memory of a run in its own process.

Run it with ``python -m experiments.benchmarks.cost_estimates.watch NAME DATA MODEL``.
"""

import ctypes
import gc
import json
import pathlib
import sys

import jax

from experiments.benchmarks.cost_estimates import MEASURED, small
from fedjax_lora.runs import cost
from fedjax_lora.runs.build import build, load_assets
from fedjax_lora.runs.compilation import CompiledFunctions, programs
from fedjax_lora.runs.config import RunConfig

STATUS = pathlib.Path("/proc/self/status")


def resident(field: str) -> int:
    """Resident bytes: the present size (``VmRSS``) or the peak since `reset_peak` (``VmHWM``)."""
    (line,) = (x for x in STATUS.read_text().splitlines() if x.startswith(field))
    return 1024 * int(line.split()[1])


def reset_peak() -> None:
    """Reset the peak of the resident memory."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def one_round(config: RunConfig, shared: CompiledFunctions) -> None:
    """Load data and model and train one round; the peak covers the training only."""
    ready = build(config, load_assets(config), shared)
    plan = ready.federation.plan(0, ready.ranks.initial, 1e-3)
    state = ready.begin().state
    reset_peak()
    jax.block_until_ready(ready.train(state, plan))


def main(name: str, data_dir: str, model: str) -> None:
    """Train a round twice and measure the second one: memory of the compiler is not counted."""
    config = small(**MEASURED[name], data_dir=data_dir, model=model)
    estimate = cost.needs(config, load_assets(config, weights=False)).memory
    shared = programs()
    one_round(config, shared)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    one_round(config, shared)
    took = resident("VmHWM") - before
    print(json.dumps({"estimated": estimate.total, "took": took, "parts": estimate._asdict()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
