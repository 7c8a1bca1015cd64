"""Run a config: the loop over rounds, with evaluation and everything that is written down."""

import contextlib
import logging
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from fedjax_lora.core import distributed
from fedjax_lora.core.errors import InputError, Stopped
from fedjax_lora.core.json_values import History, Record
from fedjax_lora.federated import Execution, FederatedState, Plan, RoundMetrics
from fedjax_lora.federated.ranks import ClientScores
from fedjax_lora.runs.build import assemble
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.choices import check_names, resolve
from fedjax_lora.runs.compilation import CompiledFunctions
from fedjax_lora.runs.compilation import programs as new_programs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.cost.clients_per_step import choose_clients_per_step
from fedjax_lora.runs.fairness import client_scores
from fedjax_lora.runs.folder import RunFolder
from fedjax_lora.runs.loading import Assets, execution_of, load_assets, log_notes
from fedjax_lora.runs.outputs import Result, finish, make_result
from fedjax_lora.runs.prepared import Run
from fedjax_lora.runs.recorder import Recorder, recording
from fedjax_lora.runs.resume import find_checkpoints, restore
from fedjax_lora.runs.round_record import RoundRecord
from fedjax_lora.runs.setup import set_up

log = logging.getLogger(__name__)

FEW_OWNERS = (
    "%d components had too few owners in round %d for their median or trimmed mean to leave out "
    "anything: a single attacker decides there; least_owners=3 lets them rest, krum compares whole "
    "updates"
)
"""Warning about a defence that does not defend everything; rounds record the number."""


class Clock:
    """Wall-clock and processor time since its creation."""

    def __init__(self) -> None:
        self._began, self._processor = time.perf_counter(), time.process_time()

    def add(self, seconds: float) -> None:
        """Add the seconds that an interrupted run has taken before."""
        self._began -= seconds

    def seconds(self) -> float:
        """Return the wall-clock seconds."""
        return time.perf_counter() - self._began

    def times(self) -> dict[str, float]:
        """Return wall-clock seconds, and processor seconds of this process alone."""
        processor = time.process_time() - self._processor
        return {"seconds": self.seconds(), "processor_seconds": processor}


def run(
    config: RunConfig,
    *,
    out: str | pathlib.Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    assets: Assets | None = None,
    execution: Execution | None = None,
    programs: CompiledFunctions | None = None,
    on_round: Callable[[Record], object] = lambda record: None,
    on_phase: Callable[[str], None] = lambda phase: None,
    stop: Callable[[], object] = lambda: False,
) -> Result:
    """Run a config to its end.

    Args:
      config: the run.
      out: folder for the results; None writes nothing.
      overwrite: replace the run that ``out`` holds.
      resume: continue the run that ``out`` holds from its newest complete checkpoint, so that it
        ends byte for byte as if it had not been interrupted; `fedjax_lora.runs.resume` says which
        fields of the config may have changed. A finished run is returned as it is.
      assets: data and model loaded before, to share between runs.
      execution: how cohorts are executed, in place of what the config says; see
        `fedjax_lora.federated.remote` for clients that are other machines.
      programs: compiled functions to share between runs, see `fedjax_lora.runs.compilation`.
      on_round: called with each round's numbers and times.
      on_phase: called with what begins, in words: a round, an evaluation.
      stop: called after each round; if true, a checkpoint is saved and `Stopped` raised.

    Raises:
      InputError: anything wrong with the input, in one sentence.
      Stopped: ``stop`` returned true.
    """
    clock, shared = Clock(), programs or new_programs()
    # Bad input leaves no folder behind: look at the folder, build everything, then write.
    with contextlib.ExitStack() as stack:
        with distributed.raise_on_all():
            _check_arguments(config, out, resume=resume)
            if assets is None:
                check_names(config)
            choices = resolve(config)
            folder, checkpoints = None, []  # of the first process, which alone writes
            if out is not None and distributed.is_first():
                claim = RunFolder.claim(out, config, overwrite=overwrite, resume=resume)
                folder = stack.enter_context(claim)
                if resume:
                    checkpoints = find_checkpoints(folder, config, choices.schedule)
        with distributed.raise_on_all():
            assets = load_assets(config) if assets is None else assets
            setup = set_up(config, choices, assets, execution or execution_of(config))
            config, setup = choose_clients_per_step(config, assets, setup, tell=log.warning)
            built = assemble(config, setup, assets, shared)
        log_notes(assets.task.task.name, assets.task.notes)
        if config.federation.stop != "never" and not config.data.validation_examples:
            log.warning(
                "test data decide when this run ends, so its last score is too good; give "
                "--validation-examples"
            )
        if jax.process_count() > 1:
            distributed.check_same("config or input", built.identity)
        with distributed.raise_on_all():
            progress, history, summary = built.begin(), [], None
        reference = built.reference(progress.state)
        if resume:
            progress, history = restore(checkpoints, built.about, progress)
            summary = distributed.gather(folder.finished() if folder else None)[0]
        if not summary or not built.ends(history):
            clock.add(progress.seconds)
            with distributed.raise_on_all(), contextlib.ExitStack() as writing:
                with distributed.raise_on_all():
                    about = built.about if folder else {}
                    files = recording(folder, config, built.task, about, history, checkpoints)
                    recorder = writing.enter_context(files)
                hooks = Hooks(on_round, on_phase, stop)
                progress = play(built, progress, recorder, clock, hooks)
            history = recorder.history
            found = reference | client_scores(built, progress, history[-1])
            summary = finish(built, progress, history, found, clock.times(), folder)
        return make_result(built, progress, history, summary, folder)


class Hooks(NamedTuple):
    """What a run calls as it goes on; see `run`."""

    on_round: Callable[[Record], object]
    on_phase: Callable[[str], None]
    stop: Callable[[], object]


def play(run: Run, progress: Progress, recorder: Recorder, clock: Clock, hooks: Hooks) -> Progress:
    """Play the remaining rounds of a run and record each of them, until it ends.

    Args:
      run: the run.
      progress: the progress to continue from; its state is donated.
      recorder: records each round.
      clock: time of the run.
      hooks: what is called as the run goes on.

    Returns:
      The progress after the last round.

    Raises:
      InputError: the folder cannot be written.
      Stopped: ``stop`` returned true.
    """
    first = progress.round
    while not run.ends(recorder.history):
        compiles = ", compiling" if progress.round == first else ""
        hooks.on_phase(f"round {progress.round + 1}{compiles}")
        progress, record, times = play_round(run, progress, hooks.on_phase)
        progress = progress._replace(seconds=clock.seconds())
        is_last = run.ends([*recorder.history, record])
        if is_last:  # a rule has ended the run before its last round
            record |= run.evaluations.complete(record, progress.state)
        stops = not is_last and any(distributed.gather(bool(hooks.stop())))
        warn_of_few_owners(record, recorder.history)
        with distributed.raise_on_all():
            recorder.record(record, times, progress, last=is_last or stops)
        hooks.on_round(record | times)
        if stops:
            raise Stopped(f"stopped after round {progress.round} of {run.rounds}")
    return progress


def warn_of_few_owners(record: Record, history: History) -> None:
    """Warn of the first round in which a defence could not leave out anything somewhere."""
    if record.get("few_owners") and not any(x.get("few_owners") for x in history):
        log.warning(FEW_OWNERS, record["few_owners"], record["round"])


def play_round(
    run: Run, progress: Progress, on_phase: Callable[[str], None] = lambda phase: None
) -> tuple[Progress, Record, dict[str, float]]:
    """Play one round: update ranks, plan, train, aggregate, evaluate.

    Args:
      run: the run.
      progress: the progress before the round; its state is donated.
      on_phase: called before the evaluation.

    Returns:
      The progress after the round, the round's record as in ``metrics.jsonl``, and its times.
    """
    began = time.perf_counter()
    begun = begin_round(run, progress)
    state, metrics = run.train(begun.state, begun.plan)
    jax.block_until_ready(metrics)
    seconds = time.perf_counter() - began
    return end_round(run, begun, state, metrics, seconds, on_phase)


class BegunRound(NamedTuple):
    """A round that is planned, before its training.

    Attributes:
      progress: the progress before the round.
      state: state to train from; its components may have been drawn anew with new ranks.
      rank: rank of each client, ``int32[N]``.
      scores: last score of each client.
      plan: plan of the round.
      record: record of the round, as far as it is known.
    """

    progress: Progress
    state: FederatedState
    rank: np.ndarray
    scores: ClientScores
    plan: Plan
    record: RoundRecord


def begin_round(run: Run, progress: Progress) -> BegunRound:
    """Update ranks and plan a round.

    Args:
      run: the run.
      progress: the progress before the round.
    """
    t, rate = progress.round, run.learning_rate(progress.round)
    state, rank, scores, scored = run.ranks.reallocate(
        t, rate, progress.state, progress.rank.copy(), progress.scores
    )
    plan, timing = run.plan(t, rank, state)
    record = RoundRecord(
        run.record_context, plan, state, scored, timing, logged_rank=progress.logged_rank
    )
    return BegunRound(progress, state, rank, scores, plan, record)


def end_round(
    run: Run,
    begun: BegunRound,
    state: FederatedState,
    metrics: RoundMetrics,
    seconds: float,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> tuple[Progress, Record, dict[str, float]]:
    """Complete the record of a round after its training, and evaluate if it is due.

    Args:
      run: the run.
      begun: the round as it began.
      state: state after training and aggregation.
      metrics: of the training.
      seconds: that planning and training took.
      on_phase: called before the evaluation.

    Returns:
      As `play_round`.
    """
    t, options, plan, record = begun.progress.round, run.config.execution, begun.plan, begun.record
    rank = record.add_metrics(metrics, state, begun.rank)
    times = {"round": t + 1, "train_seconds": seconds} | dict(metrics.seconds)
    times["train_tokens"] = int(plan.batches.tokens.sum())
    if (t + 1) % options.eval_every == 0 or t + 1 == run.rounds:
        on_phase(f"evaluating after round {t + 1}")
        began = time.perf_counter()
        record.values |= run.evaluations.after_round(state, last=t + 1 == run.rounds)
        times["eval_seconds"] = time.perf_counter() - began
    progress = Progress(state, rank, record.logged_rank, begun.scores, t + 1)
    return progress, record.values, times


def _check_arguments(config: RunConfig, out: str | pathlib.Path | None, *, resume: bool) -> None:
    """Check the arguments of `run` that do not go together.

    Raises:
      InputError: a run without a folder is to be resumed, or several processes are not to share
        their devices, or to measure.
    """
    if resume and out is None:
        raise InputError("A run is resumed in its folder; give out.")
    count, options = jax.process_count(), config.execution
    if count > 1 and (options.mode != "sharded" or options.measure or options.evaluate_clients):
        raise InputError(
            f"A run of {count} processes needs --mode sharded, and can neither measure nor score "
            "clients; leave out --measure and --evaluate-clients."
        )
