"""One run from its config: round after round, evaluated and written down."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from fedjax_lora import (
    around,
    data,
    handover,
    optimizers,
    plots,
    processes,
    reallocation,
    resuming,
    trees,
)
from fedjax_lora import config as configs
from fedjax_lora.adapters import Template
from fedjax_lora.allocation import Scores
from fedjax_lora.checkpoints import Progress
from fedjax_lora.config import RunConfig
from fedjax_lora.data.draw import draw
from fedjax_lora.errors import InputError, Stopped
from fedjax_lora.exchange import Fitted
from fedjax_lora.experiment import Assets, Experiment, prepare
from fedjax_lora.journal import journal
from fedjax_lora.programs import Programs
from fedjax_lora.results import SUMMARY, RunFolder, environment
from fedjax_lora.rounds import FederatedState, RoundMetrics
from fedjax_lora.types import Adapter

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
        with processes.together():
            if out is not None and processes.first():
                claim = RunFolder.claim(out, config, overwrite=overwrite, resume=resume)
                folder = held.enter_context(claim)
                found = resuming.find(folder, config) if resume else []
        began, worked = time.perf_counter(), time.process_time()
        with processes.together():
            experiment = prepare(config, assets, programs)
        if jax.process_count() > 1:
            processes.need_same("input", resuming.inputs(experiment))
        rounds = config.federation.rounds
        schedule = optimizers.schedule(config.local.schedule, rounds=rounds)
        progress, reference = begin(experiment), experiment.reference()
        with processes.together():
            if found:
                progress = resuming.continued(found[-1], experiment, progress)
        if resume:
            progress = resuming.on_every_process(progress)
        summary = processes.of_all(folder.finished() if folder and resume else None)[0]
        if summary and progress.round == rounds:
            return result(experiment, progress, summary, folder)
        began, last = began - progress.seconds, progress
        with processes.together(), contextlib.ExitStack() as kept:
            with processes.together():
                write = kept.enter_context(journal(folder, experiment, progress, found))
            for last, times in play(experiment, schedule, progress):
                stopping = last.round < rounds and any(processes.of_all(bool(stop())))
                with processes.together():
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
        fitted = handover.of_server(experiment, last.state)
        with processes.together():
            if folder:
                with folder.writing():
                    leave(folder, experiment, made, fitted)
        return made


def _check_processes(config: RunConfig) -> None:
    """Refuse what several processes cannot do, and that they do different things.

    Raises:
      InputError: either.
    """
    if jax.process_count() == 1:
        return
    processes.need_same("config", trees.flat(configs.to_dict(config)))
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


def play(
    experiment: Experiment, schedule: optax.Schedule, progress: Progress
) -> Iterator[tuple[Progress, dict[str, float]]]:
    """The rounds that are left: after each what the run carries on, and how long it took."""
    config, federation = experiment.config, experiment.federation
    fed, how = config.federation, config.execution
    state, scores, told = progress.state, progress.scores, progress.told
    rank, history = progress.rank.copy(), list(progress.history)
    key = jax.random.key(config.seed)
    head = jax.eval_shape(lambda: experiment.state.head) if fed.heads == "average" else {}
    head_bytes = trees.size_bytes(head)
    for t in range(progress.round, fed.rounds):
        clock = time.perf_counter()
        rate = config.local.learning_rate * float(jnp.asarray(schedule(t)))
        state, rank, scores = experiment.reallocate(t, rate, state, rank, scores)
        scoring = scoring_bytes(experiment, state, scores, t)
        plan = federation.plan(t, rank, rate)
        drawn, present = federation.drawn(plan), plan.weight > 0
        # All who were drawn receive, as if all of them were going to answer.
        received = experiment.method.traffic(state.server, plan.rank[drawn], t).down
        state, seen = experiment.round_fn(experiment.base, experiment.data, state, plan, key)
        rank[plan.id[present]] = np.asarray(seen.rank)[present]
        # Clients that have given up rank send less than they received.
        traffic = experiment.method.traffic(state.server, np.asarray(seen.rank)[present], t)
        sent = around.up_bytes(experiment.updates, traffic, experiment.template, head)
        record = (
            {
                "round": t + 1,
                "train_loss": mean_loss(seen),
                "examples": int(np.sum(seen.examples)),
                "up_bytes": int(sent.sum()) + scoring.get("score_up_bytes", 0),
                "down_bytes": int(received.sum() + drawn.sum() * head_bytes)
                + scoring.get("score_down_bytes", 0),
                "rejected": plan.id[np.asarray(seen.rejected)].tolist(),
            }
            | scoring
            | federation.events(plan)
            | experiment.privacy(t + 1)
            | dict(seen.measured)
        )
        if not np.array_equal(rank, told):
            record["ranks"], told = reallocation.histogram(rank), rank.copy()
        times = {"round": t + 1, "train_seconds": time.perf_counter() - clock} | dict(seen.seconds)
        if (t + 1) % how.eval_every == 0 or t + 1 == fed.rounds:
            clock = time.perf_counter()
            record |= experiment.evaluate(state)
            times["eval_seconds"] = time.perf_counter() - clock
        history.append(record)
        yield Progress(state, rank.copy(), told, scores, list(history)), times


def scoring_bytes(
    experiment: Experiment, state: FederatedState, scores: Scores, round: int
) -> dict[str, int]:
    """What scoring clients before a round sent, each way; ``{}`` if nobody was scored."""
    cohorts = reallocation.asked(experiment.review, experiment.federation, scores, round)
    heads = experiment.config.federation.heads
    head = trees.size_bytes(jax.eval_shape(lambda: state.head))
    each = [experiment.method.traffic(state.server, rank, round) for rank in cohorts]
    if not each:
        return {}
    count = sum(map(len, cohorts))  # a head of a client's own goes up only, to be validated
    up = sum(int(traffic.up.sum()) for traffic in each) + count * head * (heads != "frozen")
    down = sum(int(traffic.down.sum()) for traffic in each) + count * head * (heads == "average")
    return {"score_up_bytes": up, "score_down_bytes": down}


def mean_loss(seen: RoundMetrics) -> float | None:
    """The mean training loss over all examples, without rejected updates; None if none are left."""
    counted = np.where(seen.rejected, 0, seen.examples)
    if not counted.any():
        return None
    return float(np.average(np.where(counted > 0, seen.loss, 0), weights=counted))


def leave(folder: RunFolder, experiment: Experiment, made: Result, fitted: Fitted) -> None:
    """Write the figures, the global model and, last of all, the summary of a finished run."""
    assets = experiment.assets
    made.plot().savefig(folder.path / "figures" / "accuracy.png")
    if assets.task.classes:
        parts = data.Partition(tuple(experiment.federation.members), None)
        counts = data.class_counts(parts, assets.task.train.labels, len(assets.task.classes))
        draw(counts, assets.task.classes, folder.path / "figures" / "partition.png")
    about = handover.describe(made.config, assets, made.records[-1])
    handover.leave(folder.path, fitted, about)
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
