"""One run from its config: round after round, evaluated and written down."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import around, data, export, optimizers, plots, reallocation, trees
from fedjax_lora.adapters import Template
from fedjax_lora.allocation import Scores
from fedjax_lora.config import RunConfig
from fedjax_lora.data.draw import draw
from fedjax_lora.experiment import Assets, Experiment, global_model, prepare
from fedjax_lora.programs import Programs
from fedjax_lora.results import RunFolder, environment
from fedjax_lora.rounds import FederatedState


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run."""

    config: RunConfig
    template: Template
    state: FederatedState
    rank: np.ndarray  # int32[N], at the end
    history: list[dict[str, Any]]  # one record per round, as in metrics.jsonl
    summary: dict[str, Any]
    out: pathlib.Path | None


def run(
    config: RunConfig,
    *,
    out: str | pathlib.Path | None = None,
    overwrite: bool = False,
    assets: Assets | None = None,
    programs: Programs | None = None,
    on_round: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Result:
    """Run a config to its end.

    Args:
      config: what to run.
      out: folder for the results; None writes nothing.
      overwrite: replace the run that ``out`` holds.
      assets: data and model loaded before, to share between runs.
      programs: compiled functions to share between runs, see `fedjax_lora.programs`.
      on_round: called with each round's numbers and times.

    Raises:
      InputError: anything wrong with the input, in one sentence.
    """
    # Bad input leaves no folder behind: look at the folder, build everything, then write.
    folder = None if out is None else RunFolder.claim(out, config, overwrite=overwrite)
    began, worked = time.perf_counter(), time.process_time()
    experiment = prepare(config, assets, programs)
    federation, state, rank = experiment.federation, experiment.state, experiment.rank.copy()
    fed, how = config.federation, config.execution
    schedule = optimizers.schedule(config.local.schedule, rounds=fed.rounds)
    scores, told = Scores.none(fed.clients), rank.copy()
    key = jax.random.key(config.seed)
    head = jax.eval_shape(lambda: experiment.state.head) if fed.heads == "average" else {}
    head_bytes = trees.size_bytes(head)
    history = []
    if folder:
        folder.start(config)
    for t in range(fed.rounds):
        clock = time.perf_counter()
        rate = config.local.learning_rate * float(jnp.asarray(schedule(t)))
        state, rank, scores = experiment.reallocate(t, rate, state, rank, scores)
        scoring = scoring_bytes(experiment, state, scores, t)
        plan = federation.plan(t, rank, rate)
        present = plan.weight > 0
        received = experiment.method.traffic(state.server, plan.rank[present], t).down
        state, seen = experiment.round_fn(experiment.base, experiment.data, state, plan, key)
        rank[plan.id[present]] = np.asarray(seen.rank)[present]
        # Clients that have given up rank send less than they received.
        traffic = experiment.method.traffic(state.server, np.asarray(seen.rank)[present], t)
        sent = around.up_bytes(experiment.updates, traffic, experiment.template, head)
        record = (
            {
                "round": t + 1,
                "train_loss": float(np.average(seen.loss, weights=np.maximum(seen.examples, 1e-9))),
                "examples": int(np.sum(seen.examples)),
                "up_bytes": int(sent.sum()) + scoring.get("score_up_bytes", 0),
                "down_bytes": int(received.sum() + present.sum() * head_bytes)
                + scoring.get("score_down_bytes", 0),
                "rejected": plan.id[np.asarray(seen.rejected)].tolist(),
            }
            | scoring
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
        if folder:
            folder.append("metrics.jsonl", record)
            folder.append("timing.jsonl", times)
        on_round(record | times)
    seconds = {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - worked,
    }
    summary = summarise(experiment, history, seconds)
    if folder:
        folder.write("summary.json", summary)
        leave(folder, experiment, state, history, summary)
    return Result(
        config, experiment.template, state, rank, history, summary, folder.path if folder else None
    )


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


def leave(
    folder: RunFolder,
    experiment: Experiment,
    state: FederatedState,
    history: list[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    """Write the figures and the global adapter of a finished run."""
    config, assets = experiment.config, experiment.assets
    plots.history(
        history,
        folder.path / "figures" / "accuracy.png",
        metric=assets.task.task.metric,
        title=f"{config.data.task}: {config.federation.method}",
        majority=summary.get("majority_accuracy"),
    )
    if assets.task.classes:
        parts = data.Partition(tuple(experiment.federation.members), None)
        counts = data.class_counts(parts, assets.task.train.labels, len(assets.task.classes))
        draw(counts, assets.task.classes, folder.path / "figures" / "partition.png")
    trained, _ = global_model(state, experiment.template)
    export.save_adapter(
        folder.path / "adapter",
        assets.model,
        config.model.model,
        experiment.template,
        state,
        trained,
    )


def summarise(
    experiment: Experiment, history: list[dict[str, Any]], seconds: dict[str, float]
) -> dict[str, Any]:
    """The numbers of a whole run."""
    task, assets = experiment.assets.task.task, experiment.assets
    labels = assets.test.label
    summary: dict[str, Any] = {"method": experiment.config.federation.method, "task": task.name}
    summary |= {
        k: v for k, v in history[-1].items() if k.endswith((task.metric, "accuracy", "loss"))
    }
    if not task.regression:
        summary["majority_accuracy"] = float(np.bincount(labels).max() / len(labels))
    return (
        summary
        | {
            "rounds": len(history),
            "train_examples": len(assets.train.label),
            "test_examples": len(labels),
            "train_test_overlap": assets.task.overlap,
            "up_bytes": sum(r["up_bytes"] for r in history),
            "down_bytes": sum(r["down_bytes"] for r in history),
            **seconds,
            "base_sha256": assets.model.fingerprint,
        }
        | environment()
    )
