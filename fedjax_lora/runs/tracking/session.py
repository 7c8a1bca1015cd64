"""Track a run: trackers by name, started before it and ended with it."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import Record
from fedjax_lora.core.optional_packages import is_installed
from fedjax_lora.core.untrusted_files import first_line
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.tracking.base import Log, TrackedRun, Tracker, flat
from fedjax_lora.runs.tracking.mlflow import mlflow
from fedjax_lora.runs.tracking.tensorboard import tensorboard
from fedjax_lora.runs.tracking.trackio import trackio
from fedjax_lora.runs.tracking.wandb import wandb

log = logging.getLogger(__name__)

TRACKERS: dict[str, Callable[..., Tracker]] = {
    function.__name__: function for function in (tensorboard, wandb, mlflow, trackio)
}
"""Factories of trackers by name; further ones can be added."""

_PACKAGES = {"tensorboard": "tensorboardX"}
"""Modules that trackers need, where they are not named like the tracker."""


def check_trackers(specs: Sequence[str]) -> list[Tracker]:
    """Return the trackers that specs name, and check that their packages are installed.

    Raises:
      InputError: an unknown name or option, or a package that is missing.
    """
    trackers = [registry.build(spec, TRACKERS, "tracker") for spec in specs]
    for name in (registry.parse(spec, "tracker")[0] for spec in specs):
        module = _PACKAGES.get(name, name)
        if not is_installed(module):
            raise InputError(
                f"Tracker {name!r} needs the package {module}; install it with "
                f"pip install 'fedjax-lora[{name}]'."
            )
    return trackers


@contextlib.contextmanager
def track(
    specs: Sequence[str], config: RunConfig, out: str | pathlib.Path, *, resume: bool = False
) -> Iterator[Log]:
    """Track a run.

    Args:
      specs: trackers, such as ``["tensorboard", "wandb(project='clients')"]``.
      config: the run.
      out: its folder.
      resume: whether the run in the folder is continued; its rounds go where the earlier ones are.

    Yields:
      A function for ``on_round`` of `fedjax_lora.run`.

    Raises:
      InputError: an unknown tracker or option, a package that is missing, or a tracker that does
        not start.
    """
    folder = pathlib.Path(out)
    options = flat(configs.to_dict(config))
    run = TrackedRun(folder.resolve().name, options, folder, resume)
    with contextlib.ExitStack() as stack:
        logs = {
            spec: stack.enter_context(_started(spec, tracker, run))
            for spec, tracker in zip(specs, check_trackers(specs), strict=True)
        }

        def on_round(record: Record) -> None:
            for spec, write in list(logs.items()):
                try:
                    write(record)
                except Exception as error:
                    log.warning("tracker %s stopped (%s); the run goes on", spec, first_line(error))
                    del logs[spec]

        yield on_round


@contextlib.contextmanager
def _started(spec: str, tracker: Tracker, run: TrackedRun) -> Iterator[Log]:
    """Start a tracker, and end it; that it cannot be ended does not lose a run.

    Raises:
      InputError: it does not start.
    """
    context = tracker(run)
    try:
        write = context.__enter__()
    except Exception as error:
        raise InputError(f"Tracker {spec} does not start ({first_line(error)}).") from error
    try:
        yield write
    except BaseException as error:
        _end(spec, context, error)
        raise
    _end(spec, context, None)


def _end(
    spec: str, context: contextlib.AbstractContextManager[Log], error: BaseException | None
) -> None:
    try:
        context.__exit__(type(error) if error else None, error, None)
    except Exception as failure:
        if failure is not error:
            log.warning("tracker %s could not be closed (%s)", spec, first_line(failure))
