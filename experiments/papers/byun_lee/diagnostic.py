"""The effect of one aggregation on the model of a high-quality client."""

import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lora import federated
from fedjax_lora.core.types import ClientParams
from fedjax_lora.federated import (
    ClientMetrics,
    CohortUpdate,
    CompiledRound,
    Execution,
    Plan,
    TrainFn,
)
from fedjax_lora.methods import Method
from fedjax_lora.runs.build import Assets, Run, build
from fedjax_lora.runs.compilation import CompiledFunctions, RoundSpec
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.run import run
from fedjax_lora.runs.sweep.grid import changed

AFTER = ("zero_padding", "replication")


class Diagnosed(NamedTuple):
    """The stored part of the result."""

    records: list[dict[str, Any]]
    summary: dict[str, Any]


def diagnose(config: RunConfig, assets: Assets, programs: CompiledFunctions) -> Diagnosed:
    """Measure the test accuracy of a high-rank client's model before and after the aggregations.

    A client of the highest rank receives the whole global model, so its accuracy after the
    aggregation is the global model's. All three share the same local training.
    """
    began, worked = time.perf_counter(), time.process_time()
    ready = build(config, assets, programs)
    plan = ready.federation.plan(0, ready.ranks.initial, config.local.learning_rate)
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


def train_locally(ready: Run, plan: Plan) -> CohortUpdate:
    """Run the local training of the first round, which is the same for all padding rules."""
    spec = ready.round_spec
    client_update = federated.make_client_update(
        ready.method, spec.training(), heads=spec.heads, execution=spec.execution
    )
    inputs, state = ready.inputs, ready.begin().state
    return jax.jit(client_update)(inputs.base, inputs.train, state, plan, ready.key)


def local_accuracy(ready: Run, plan: Plan, local: CohortUpdate) -> float:
    """Test accuracy of the first client of the highest rank after its local training."""
    chosen = int(np.argmax(plan.rank))
    own = jax.tree.map(lambda x: x[chosen], local.trained)
    state = ready.begin().state
    server = state.server._replace(adapter=own.adapter)
    return ready.evaluate(state._replace(server=server, head=own.head))["accuracy"]


class Replayed(NamedTuple):
    """A local training that has already happened."""

    trained: ClientParams
    metrics: ClientMetrics

    def bind(self, method: Method) -> TrainFn:
        """The results, whatever the arguments."""
        return lambda *_: (self.trained, self.metrics)


def aggregation(local: CohortUpdate, spec: RoundSpec) -> CompiledRound:
    """The round of a spec after a local training that has already happened."""
    return federated.compile_round(
        spec.make_method(),
        Replayed(local.trained, local.metrics),
        heads=spec.heads,
        execution=Execution(clients_per_step=len(local.metrics.loss)),
    )
