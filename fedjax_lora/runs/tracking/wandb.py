"""Weights & Biases."""

import contextlib
import importlib
from collections.abc import Iterator

from fedjax_lora.core.json_values import Record
from fedjax_lora.runs.tracking.base import Log, TrackedRun, Tracker, numbers


def wandb(*, project: str = "fedjax-lora", entity: str | None = None) -> Tracker:
    """Log to Weights & Biases; its own variables (``WANDB_MODE=offline``) hold.

    Args:
      project: name of the project.
      entity: user or team; by default that of the login.
    """

    @contextlib.contextmanager
    def tracker(run: TrackedRun) -> Iterator[Log]:
        package = importlib.import_module("wandb")

        id = run.id("wandb")
        session = package.init(
            project=project,
            entity=entity,
            name=run.name,
            config=dict(run.config),
            id=id,
            resume="allow" if id else None,
        )
        session.define_metric("round", hidden=True)
        session.define_metric("*", step_metric="round")

        def write(record: Record) -> None:
            run.keep_id("wandb", session.id)
            session.log(numbers(record) | {"round": record["round"]})

        failed = 1
        try:
            yield write
            failed = 0
        finally:
            session.finish(exit_code=failed)

    return tracker
