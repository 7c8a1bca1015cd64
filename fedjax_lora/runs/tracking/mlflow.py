"""MLflow."""

import contextlib
import importlib
import time
from collections.abc import Iterator
from typing import Any

from fedjax_lora.core.json_values import Record
from fedjax_lora.runs.tracking.base import Log, TrackedRun, Tracker, numbers


def mlflow(*, experiment: str = "fedjax-lora", uri: str | None = None) -> Tracker:
    """Log to MLflow.

    Args:
      experiment: name of the experiment.
      uri: address or folder of the tracking store; by default MLflow's own
        (``MLFLOW_TRACKING_URI``).
    """

    @contextlib.contextmanager
    def tracker(run: TrackedRun) -> Iterator[Log]:
        package = importlib.import_module("mlflow")
        entities = importlib.import_module("mlflow.entities")
        client = package.MlflowClient(uri)
        id = run.id("mlflow") or _begin(client, experiment, run, entities.Param)

        def write(record: Record) -> None:
            run.keep_id("mlflow", id)
            now = int(time.time() * 1000)
            metrics = [
                entities.Metric(name, x, now, record["round"])
                for name, x in numbers(record).items()
            ]
            client.log_batch(id, metrics)

        status = "FAILED"
        try:
            yield write
            status = "FINISHED"
        finally:
            client.set_terminated(id, status)

    return tracker


def _begin(client: Any, experiment: str, run: TrackedRun, param: Any) -> str:
    """Create a run in MLflow with its config; returns its id."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    id = client.create_run(experiment_id, run_name=run.name).info.run_id
    client.log_batch(id, params=[param(name, str(value)) for name, value in run.config.items()])
    return id
