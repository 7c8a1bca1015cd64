"""trackio."""

import contextlib
import importlib
from collections.abc import Iterator

from fedjax_lora.runs.tracking.base import Log, TrackedRun, Tracker, numbers


def trackio(*, project: str = "fedjax-lora", space: str | None = None) -> Tracker:
    """Log to trackio.

    Args:
      project: name of the project.
      space: id of a Hugging Face Space that shows the runs; by default they stay on this machine.
    """

    @contextlib.contextmanager
    def tracker(run: TrackedRun) -> Iterator[Log]:
        package = importlib.import_module("trackio")

        session = package.init(
            project=project,
            name=run.name,
            space_id=space,
            config=dict(run.config),
            resume="allow" if run.resumed else "never",
            embed=False,
        )
        try:
            yield lambda record: session.log(numbers(record), step=record["round"])
        finally:
            session.finish()

    return tracker
