"""The rounds of a run, one after another: what each does, what it sends and how long it takes."""

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lora.federated import transforms
from fedjax_lora.federated.ranks import reallocation
from fedjax_lora.core import trees
from fedjax_lora.federated.ranks import Scores
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.build import Experiment
from fedjax_lora.federated import FederatedState, RoundMetrics


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
        asked = experiment.method.traffic(state.server, plan.rank[drawn], t)
        state, seen = experiment.round_fn(experiment.base, experiment.data, state, plan, key)
        rank[plan.id[present]] = np.asarray(seen.rank)[present]
        # Clients that have given up rank send less than they received.
        traffic = experiment.method.traffic(state.server, np.asarray(seen.rank)[present], t)
        sent = transforms.up_bytes(experiment.updates, traffic, experiment.template, head)
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
