"""One run from its config: round after round, evaluated and written down."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from matplotlib.figure import Figure

from fedjax_lora.runs import config as configs
from fedjax_lora import data
from fedjax_lora.core import atomic_io, distributed, trees
from fedjax_lora.runs import outputs, plots, resume as resumption
from fedjax_lora.federated import optimizers
from fedjax_lora.lora import Template
from fedjax_lora.federated.ranks import Scores
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.plots import draw
from fedjax_lora.core.errors import InputError, Stopped
from fedjax_lora.interop import Fitted
from fedjax_lora.runs.build import Experiment, prepare
from fedjax_lora.runs.folder import journal
from fedjax_lora.runs.run import play
from fedjax_lora.runs.compilation import Programs
from fedjax_lora.runs.folder import SUMMARY, RunFolder, environment
from fedjax_lora.federated import FederatedState
from fedjax_lora.core.types import Adapter

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run."""

    config: RunConfig
    metric: str  # of the task
    template: Template
    state: FederatedState
    rank: np.ndarray  # int32[N], at the end
    records: list[dict[str, Any]]  # one per round, as in metrics.jsonl
    summary: dict[str, Any]
    out: pathlib.Path | None

    @property
    def history(self) -> "pandas.DataFrame":
        """The rounds as a table, indexed by round; NaN where a round was not evaluated."""
        import pandas

        return pandas.DataFrame(self.records).set_index("round")

    @property
    def adapter(self) -> Adapter:
        """The global adapter (zero for a method that adds to the base instead)."""
        return self.state.server.adapter

    def plot(self) -> Figure:
        """The test metric and the losses over the rounds, as a figure that a notebook shows."""
        return plots.history(
            self.records,
            metric=self.metric,
            title=f"{self.config.data.task}: {self.config.federation.method}",
            beat=plots.to_beat(self.summary, self.metric),
        )


def run(
    config: RunConfig,
    *,
    out: str | pathlib.Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    assets: Assets | None = None,
    programs: Programs | None = None,
    on_round: Callable[[dict[str, Any]], None] = lambda record: None,
    stop: Callable[[], Any] = lambda: False,
) -> Result:
    """Run a config to its end.

    Args:
      config: what to run.
      out: folder for the results; None writes nothing.
      overwrite: replace the run that ``out`` holds.
      resume: go on with the run that ``out`` holds, from its newest whole checkpoint, so that it
        ends byte for byte as if it had never stopped; `fedjax_lora.resuming` says which fields of
        the config may have changed. A finished run is returned as it is.
      assets: data and model loaded before, to share between runs.
      programs: compiled functions to share between runs, see `fedjax_lora.programs`.
      on_round: called with each round's numbers and times.
      stop: asked after each round whether to save a checkpoint and raise `Stopped`.

    Raises:
      InputError: anything wrong with the input, in one sentence.
      Stopped: ``stop`` said so.
    """
    if resume and out is None:
        raise InputError("A run is resumed in its folder; give out.")
    _check_processes(config)
    # Bad input leaves no folder behind: look at the folder, build everything, then write.
    with contextlib.ExitStack() as held:
        folder, found = None, []  # of the first process, which alone writes
        with distributed.together():
            if out is not None and distributed.first():
                claim = RunFolder.claim(out, config, overwrite=overwrite, resume=resume)
                folder = held.enter_context(claim)
                found = resumption.find(folder, config) if resume else []
        began, worked = time.perf_counter(), time.process_time()
        with distributed.together():
            experiment = prepare(config, assets, programs)
        if jax.process_count() > 1:
            distributed.need_same("input", resumption.inputs(experiment))
        rounds = config.federation.rounds
        schedule = optimizers.schedule(config.local.schedule, rounds=rounds)
        progress, reference = begin(experiment), experiment.reference()
        with distributed.together():
            if found:
                progress = resumption.continued(found[-1], experiment, progress)
        if resume:
            progress = resumption.on_every_process(progress)
        summary = distributed.of_all(folder.finished() if folder and resume else None)[0]
        if summary and progress.round == rounds:
            return result(experiment, progress, summary, folder)
        began, last = began - progress.seconds, progress
        with distributed.together(), contextlib.ExitStack() as kept:
            with distributed.together():
                write = kept.enter_context(journal(folder, experiment, progress, found))
            for last, times in play(experiment, schedule, progress):
                stopping = last.round < rounds and any(distributed.of_all(bool(stop())))
                with distributed.together():
                    write(last._replace(seconds=time.perf_counter() - began), times, stopping)
                on_round(last.history[-1] | times)
                if stopping:
                    raise Stopped(f"stopped after round {last.round} of {rounds}")
        seconds = {
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - worked,  # of this process alone
        }
        summary = summarise(experiment, last.history, reference, seconds)
        made = result(experiment, last, summary, folder)
        fitted = outputs.of_server(experiment, last.state)
        with distributed.together():
            if folder:
                with atomic_io.writing(folder.path):
                    leave(folder, experiment, made, fitted)
        return made


def _check_processes(config: RunConfig) -> None:
    """Refuse what several processes cannot do, and that they do different things.

    Raises:
      InputError: either.
    """
    if jax.process_count() == 1:
        return
    distributed.need_same("config", trees.flat(configs.to_dict(config)))
    if config.execution.mode != "sharded" or config.execution.measure:
        raise InputError(
            f"A run of {jax.process_count()} processes needs --mode sharded, and cannot measure; "
            "leave out --measure."
        )


def begin(experiment: Experiment) -> Progress:
    """What a run carries into its first round."""
    rank = experiment.rank.astype(np.int32)
    scores = Scores.none(experiment.config.federation.clients)
    return Progress(experiment.state, rank, rank, scores, [])


def result(
    experiment: Experiment,
    progress: Progress,
    summary: dict[str, Any],
    folder: RunFolder | None,
) -> Result:
    """A finished run, from what it has led to."""
    return Result(
        experiment.config,
        experiment.assets.task.task.metric,
        experiment.template,
        progress.state,
        progress.rank,
        progress.history,
        summary,
        folder.path if folder else None,
    )


def leave(folder: RunFolder, experiment: Experiment, made: Result, fitted: Fitted) -> None:
    """Write the figures, the global model and, last of all, the summary of a finished run."""
    assets = experiment.assets
    made.plot().savefig(folder.path / "figures" / "accuracy.png")
    if assets.task.classes:
        parts = data.Partition(tuple(experiment.federation.members), None)
        counts = data.class_counts(parts, assets.task.train.labels, len(assets.task.classes))
        draw(counts, assets.task.classes, folder.path / "figures" / "partition.png")
    about = outputs.describe(made.config, assets, made.records[-1])
    outputs.leave(folder.path, fitted, about)
    folder.write(SUMMARY, made.summary)


def summarise(
    experiment: Experiment,
    history: list[dict[str, Any]],
    reference: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The numbers of a whole run; ``reference`` is what they are to be compared with."""
    task, assets = experiment.assets.task.task, experiment.assets
    summary: dict[str, Any] = {"method": experiment.config.federation.method, "task": task.name}
    names = (task.metric, "accuracy", "loss", "perplexity")
    summary |= {k: v for k, v in history[-1].items() if any(name in k for name in names)}
    return (
        summary
        | reference
        | {
            "rounds": len(history),
            "train_examples": len(assets.train.label),
            "test_examples": len(assets.test.label),
            "train_test_overlap": assets.task.overlap,
            "skipped_examples": assets.task.skipped,
            "up_bytes": sum(r["up_bytes"] for r in history),
            "down_bytes": sum(r["down_bytes"] for r in history),
            **seconds,
            "base_sha256": assets.model.fingerprint,
        }
        | environment()
    )
