"""What one aggregation does to the model of a high-quality client."""

import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lora import federated
from fedjax_lora.federated import Local, Plan, RoundFn
from fedjax_lora.runs.build import Assets, Experiment, prepare
from fedjax_lora.runs.compilation import CompiledFunctions, RoundSpec
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.run import run
from fedjax_lora.runs.sweep.grid import changed

AFTER = ("zero_padding", "replication")


class Diagnosed(NamedTuple):
    """As much of a run's result as goes into its file."""

    records: list[dict[str, Any]]
    summary: dict[str, Any]


def diagnose(config: RunConfig, assets: Assets, programs: CompiledFunctions) -> Diagnosed:
    """Test accuracy of a high-rank client's own model, and of what the aggregations make of it.

    A client of the highest rank receives the whole global model, so its accuracy after the
    aggregation is the global model's. All three begin at the same local training.
    """
    began, worked = time.perf_counter(), time.process_time()
    ready = prepare(config, assets, programs)
    plan = ready.federation.plan(0, ready.rank, config.local.learning_rate)
    local = train_locally(ready, plan)
    first = {"round": 1, "local": local_accuracy(ready, plan, local)}
    summary = {}
    for method in AFTER:
        after = changed(config, {"federation.method": method})
        replayed = programs._replace(round=functools.partial(aggregation, local))
        result = run(after, assets=assets, programs=replayed)
        first[method], summary = result.records[-1]["accuracy"], result.summary
    seconds = {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - worked,
    }
    return Diagnosed([first], summary | seconds)


def train_locally(ready: Experiment, plan: Plan) -> Local:
    """The first half of the first round, which padding rules have in common."""
    _, train, execution = ready.recipe.parts()
    locally = federated.make_local(
        ready.method, ready.spec, train, heads=ready.recipe.heads, **execution
    )
    key = jax.random.key(ready.config.seed)
    return jax.jit(locally)(ready.base, ready.data, ready.state, plan, key)


def local_accuracy(ready: Experiment, plan: Plan, local: Local) -> float:
    """Test accuracy of the first client of the highest rank after its local training."""
    chosen = int(np.argmax(plan.rank))
    own = jax.tree.map(lambda x: x[chosen], local.trained)
    server = ready.state.server._replace(adapter=own.adapter)
    return ready.evaluate(ready.state._replace(server=server, head=own.head))["accuracy"]


def aggregation(local: Local, recipe: RoundSpec) -> RoundFn:
    """The recipe's round after a local training that has already happened."""
    method, *_ = recipe.parts()
    cohort = len(local.report.loss)
    trained = lambda *_: (local.trained, local.report)  # noqa: E731
    return federated.make_round(
        method, recipe.spec, trained, heads=recipe.heads, clients_per_step=cohort
    )
