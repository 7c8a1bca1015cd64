"""One run from its config: round after round, evaluated and written down."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lora.core import atomic_io, distributed, trees
from fedjax_lora.core.errors import InputError, Stopped
from fedjax_lora.federated import FederatedState, RoundMetrics, optimizers, transforms
from fedjax_lora.federated.ranks import ClientScores, reallocation
from fedjax_lora.runs import config as configs
from fedjax_lora.runs import resume as resumption
from fedjax_lora.runs.build import Experiment, about, inputs, prepare
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.compilation import CompiledFunctions
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.folder import RunFolder, journal
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.outputs import Result, of_server, result, summarise, write_outputs


def run(
    config: RunConfig,
    *,
    out: str | pathlib.Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    assets: Assets | None = None,
    programs: CompiledFunctions | None = None,
    on_round: Callable[[dict[str, Any]], None] = lambda record: None,
    stop: Callable[[], Any] = lambda: False,
) -> Result:
    """Run a config to its end.

    Args:
      config: what to run.
      out: folder for the results; None writes nothing.
      overwrite: replace the run that ``out`` holds.
      resume: go on with the run that ``out`` holds, from its newest whole checkpoint, so that it
        ends byte for byte as if it had never stopped; `fedjax_lora.runs.resume` says which fields
        of the config may have changed. A finished run is returned as it is.
      assets: data and model loaded before, to share between runs.
      programs: compiled functions to share between runs, see `fedjax_lora.runs.compilation`.
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
        with distributed.raise_on_all():
            if out is not None and distributed.is_first():
                claim = RunFolder.claim(out, config, overwrite=overwrite, resume=resume)
                folder = held.enter_context(claim)
                found = resumption.find(folder, config) if resume else []
        began, worked = time.perf_counter(), time.process_time()
        with distributed.raise_on_all():
            experiment = prepare(config, assets, programs)
        if jax.process_count() > 1:
            distributed.check_same("input", inputs(experiment))
        rounds = config.federation.rounds
        schedule = optimizers.schedule(config.local.schedule, rounds=rounds)
        progress, reference = resumption.begin(experiment), experiment.reference()
        with distributed.raise_on_all():
            if found:
                progress = resumption.continued(found[-1], experiment, progress)
        if resume:
            progress = resumption.on_every_process(progress)
        summary = distributed.gather(folder.finished() if folder and resume else None)[0]
        if summary and progress.round == rounds:
            return result(experiment, progress, summary, folder)
        began, last = began - progress.seconds, progress
        with distributed.raise_on_all(), contextlib.ExitStack() as kept:
            with distributed.raise_on_all():
                task = experiment.assets.task.task
                write = kept.enter_context(
                    journal(
                        folder, config, task, progress, about=lambda: about(experiment), found=found
                    )
                )
            for last, times in play(experiment, schedule, progress):
                stopping = last.round < rounds and any(distributed.gather(bool(stop())))
                with distributed.raise_on_all():
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
        fitted = of_server(experiment, last.state, last.history[-1])
        with distributed.raise_on_all():
            if folder:
                with atomic_io.reporting_write_errors(folder.path):
                    write_outputs(folder, experiment, made, fitted)
        return made


def _check_processes(config: RunConfig) -> None:
    """Refuse what several processes cannot do, and that they do different things.

    Raises:
      InputError: either.
    """
    if jax.process_count() == 1:
        return
    distributed.check_same("config", trees.flat(configs.to_dict(config)))
    if config.execution.mode != "sharded" or config.execution.measure:
        raise InputError(
            f"A run of {jax.process_count()} processes needs --mode sharded, and cannot measure; "
            "leave out --measure."
        )


def play(
    experiment: Experiment, schedule: optax.Schedule, progress: Progress
) -> Iterator[tuple[Progress, dict[str, float]]]:
    """The rounds that are left: after each what the run carries on, and how long it took."""
    config, federation = experiment.config, experiment.federation
    fed, how = config.federation, config.execution
    state, scores, logged_rank = progress.state, progress.scores, progress.logged_rank
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
        asked = experiment.method.traffic(state.server, plan.rank[drawn], t)
        state, seen = experiment.round_fn(experiment.base, experiment.data, state, plan, key)
        rank[plan.id[present]] = np.asarray(seen.rank)[present]
        # Clients that have given up rank send less than they received.
        traffic = experiment.method.traffic(state.server, np.asarray(seen.rank)[present], t)
        sent = transforms.uplink_bytes(experiment.updates, traffic, experiment.spec, head)
        # All who were drawn receive, but of what clients send no more than there was.
        received = asked.down - asked.common + traffic.common
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
        if not np.array_equal(rank, logged_rank):
            record["ranks"], logged_rank = reallocation.histogram(rank), rank.copy()
        times = {"round": t + 1, "train_seconds": time.perf_counter() - clock} | dict(seen.seconds)
        if (t + 1) % how.eval_every == 0 or t + 1 == fed.rounds:
            clock = time.perf_counter()
            record |= experiment.evaluate(state)
            times["eval_seconds"] = time.perf_counter() - clock
        history.append(record)
        yield Progress(state, rank.copy(), logged_rank, scores, list(history)), times


def scoring_bytes(
    experiment: Experiment, state: FederatedState, scores: ClientScores, round: int
) -> dict[str, int]:
    """What scoring clients before a round sent, each way; ``{}`` if nobody was scored."""
    cohorts = reallocation.scoring_ranks(experiment.review, experiment.federation, scores, round)
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
