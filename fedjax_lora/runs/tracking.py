"""Trackers: the numbers of each round in TensorBoard, Weights & Biases, MLflow or trackio.

A tracker is chosen like a method, by a name with options: ``"wandb(project='clients')"``. It gets
what ``metrics.jsonl`` and ``timing.jsonl`` get, through the ``on_round`` hook of a run:

    with track(["tensorboard"], config, out="runs/a") as on_round:
        fl.run(config, out="runs/a", on_round=on_round)

A tracker that cannot start is an error before anything is loaded; one that fails later is left
behind with a warning, and the run goes on.
"""

import contextlib
import importlib
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_lora.core import atomic_io, registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.optional_packages import is_installed
from fedjax_lora.core.untrusted_files import first_line
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import RunConfig

Log = Callable[[dict[str, Any]], None]
"""Takes the record of a round, as ``on_round`` of a run does."""

Tracker = Callable[["TrackedRun"], contextlib.AbstractContextManager[Log]]
"""Starts to track a run, and ends when the run does."""

IDS = "tracking.json"
"""File in a run folder with the trackers' own ids of the run, for when it is resumed."""

log = logging.getLogger(__name__)


class TrackedRun(NamedTuple):
    """What a tracker is told about a run.

    Attributes:
      name: name of the run, that of its folder.
      config: all options as ``group/name``.
      folder: the run folder.
      resumed: whether rounds have been tracked before.
    """

    name: str
    config: Mapping[str, Any]
    folder: pathlib.Path
    resumed: bool

    def id(self, tracker: str) -> str | None:
        """Return the id that a tracker gave the run when it began; None for a new run."""
        return _read_ids(self.folder).get(tracker) if self.resumed else None

    def keep_id(self, tracker: str, id: str) -> None:
        """Keep the id that a tracker gave the run."""
        ids = _read_ids(self.folder) | {tracker: id}
        atomic_io.write(self.folder / IDS, json.dumps(ids, indent=2) + "\n")


def _read_ids(folder: pathlib.Path) -> dict[str, str]:
    try:
        ids = json.loads((folder / IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return ids if isinstance(ids, dict) else {}


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a round by name, those of groups as ``group/name``."""
    return {
        name: value
        for name, value in _flat(record).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "round"
    }


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    from fedjax_lora.core import trees  # here: it imports JAX, and trackers are checked before

    return trees.flat(values)


def tensorboard(*, folder: str | None = None) -> Tracker:
    """Write event files for TensorBoard.

    Args:
      folder: folder of the event files; by default ``tensorboard`` in the run folder.
    """

    @contextlib.contextmanager
    def tracker(run: TrackedRun) -> Iterator[Log]:
        make_writer = importlib.import_module("tensorboardX").SummaryWriter

        path = run.folder / "tensorboard" if folder is None else pathlib.Path(folder) / run.name
        writers = []

        def write(record: dict[str, Any]) -> None:
            if not writers:  # not before the run has taken its folder
                if not run.resumed:
                    shutil.rmtree(path, ignore_errors=True)
                first = record["round"]
                # Its files are named by the second: a suffix keeps those of a quick resume apart.
                writers.append(
                    make_writer(str(path), purge_step=first, filename_suffix=f".{first}")
                )
                text = "\n".join(f"    {name}: {value}" for name, value in run.config.items())
                writers[0].add_text("config", text)
            for name, value in numbers(record).items():
                writers[0].add_scalar(name, value, record["round"])
            writers[0].flush()

        try:
            yield write
        finally:
            for writer in writers:
                writer.close()

    return tracker


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

        def write(record: dict[str, Any]) -> None:
            run.keep_id("wandb", session.id)
            session.log(numbers(record) | {"round": record["round"]})

        failed = 1
        try:
            yield write
            failed = 0
        finally:
            session.finish(exit_code=failed)

    return tracker


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

        def write(record: dict[str, Any]) -> None:
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
    options = _flat(configs.to_dict(config))
    run = TrackedRun(folder.resolve().name, options, folder, resume)
    with contextlib.ExitStack() as stack:
        logs = {
            spec: stack.enter_context(_started(spec, tracker, run))
            for spec, tracker in zip(specs, check_trackers(specs), strict=True)
        }

        def on_round(record: dict[str, Any]) -> None:
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
