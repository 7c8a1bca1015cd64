"""What one aggregation does to the model of a high-quality client."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lora import rounds
from fedjax_lora.compare.grid import changed
from fedjax_lora.config import RunConfig
from fedjax_lora.experiment import Assets, prepare
from fedjax_lora.programs import Programs
from fedjax_lora.runs import run

AFTER = ("zero_padding", "replication")


class Diagnosed(NamedTuple):
    """As much of a run's result as goes into its file."""

    records: list[dict[str, Any]]
    summary: dict[str, Any]


def diagnose(config: RunConfig, assets: Assets, programs: Programs) -> Diagnosed:
    """Test accuracy of a high-rank client's own model, and of what the aggregations make of it.

    A client of the highest rank receives the whole global model, so its accuracy after the
    aggregation is the global model's. Seed and plan are the same in all three, hence the local
    training is, too.
    """
    first = {"round": 1, "local": own_accuracy(config, assets, programs)}
    for method in AFTER:
        result = run(
            changed(config, {"federation.method": method}), assets=assets, programs=programs
        )
        first[method] = result.records[-1]["accuracy"]
    return Diagnosed([first], result.summary)


def own_accuracy(config: RunConfig, assets: Assets, programs: Programs) -> float:
    """Test accuracy of the first client of the highest rank after its local training."""
    ready = prepare(config, assets, programs)
    plan = ready.federation.plan(0, ready.rank, config.local.learning_rate)
    _, train, execution = ready.recipe.parts()
    locally = jax.jit(
        rounds.make_local(
            ready.method, ready.template, train, heads=config.federation.heads, **execution
        )
    )
    key = jax.random.key(config.seed)
    trained = locally(ready.base, ready.data, ready.state, plan, key).trained
    chosen = int(np.argmax(plan.rank))
    own = jax.tree.map(lambda x: x[chosen], trained)
    server = ready.state.server._replace(adapter=own.adapter)
    return ready.evaluate(ready.state._replace(server=server, head=own.head))["accuracy"]
