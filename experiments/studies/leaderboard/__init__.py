"""Every method of the library on the same tasks, clients and tuning budget: a leaderboard.

Setting: that of the small runs of the paper studies (`experiments.tools.study.small`: three layers
of MiniLM, 100 clients, cohorts of 10, Dirichlet 0.5, at most 48 tokens) with 12 rounds; AG News and
SST-2; ranks 4/8/16/32 in equal shares and as a heavy tail. Methods that need one rank have the
mean of the mix for all clients, rounded up. Each method's learning rate is the best of three on
each task, by accuracy on 500 validation examples after half of the rounds with the uniform mix and
a seed of its own; then five seeds, the same for all. Rounds to the target are counted until the
test accuracy first reaches `TARGET` of the task. Server times are medians of one measured run. The
first five are then compared once more on all layers of MiniLM, with the rates found on three.

How many seeds there are, and which differences they can show, was written down before the first
run: ``experiments/papers/PROTOCOL.md``.

    python -m experiments.studies.leaderboard.run --data-dir DATA     # resumable; hours
    python -m experiments.studies.leaderboard.report                  # table and figure

A method of the registry has a row by itself. Another one gets it with one line here, in `METHODS`,
and the first command.
"""

import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from experiments.tools.study import Changes, Part, Records, Size, Study, small, variant
from fedjax_lora import methods
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.figure_style import METHOD_STYLES, method_label

METHODS: Mapping[str, str] = {
    **{method_label(name): name for name in METHOD_STYLES},
    method_label("zero_padding(empty='zero')"): "zero_padding(empty='zero')",
}
"""The methods by label: all of the library, and zero padding in its other reading."""

RATES = (3e-3, 8e-3, 2e-2)
TUNING_SEED, SEEDS = 100, (0, 1, 2, 3, 4)
TASKS = ("ag_news", "sst2")
TARGET = {"ag_news": 0.75, "sst2": 0.7}
LEVELS = (4, 8, 16, 32)
MIXES = {"uniform": (1, 1, 1, 1), "heavy_tail": (8, 4, 2, 1)}
"""Clients of each level, relative to each other."""
ROUNDS, EVERY = 12, 2
RUNS_OF_EACH = len(TASKS) * len(MIXES) * len(SEEDS)
CHECKED = 5
"""Methods that are compared on all layers, too."""


def mean_rank(mix: str) -> int:
    """The mean rank of a mix, rounded up.

    >>> mean_rank("uniform"), mean_rank("heavy_tail")
    (15, 9)
    """
    return math.ceil(np.average(LEVELS, weights=MIXES[mix]))


@functools.cache
def base_of(mix: str) -> Callable[[str], RunConfig]:
    """Return the base config with a mix of ranks."""
    return variant(
        small,
        {
            "federation.ranks": f"tiers(ranks={list(LEVELS)}, shares={mix!r})",
            "federation.rounds": ROUNDS,
            "execution.eval_every": EVERY,
        },
    )


def arm(label: str, mix: str, rate: float) -> Changes:
    """Config changes of a method with a learning rate."""
    changes: Changes = {"federation.method": METHODS[label], "local.learning_rate": rate}
    if not methods.takes_mixed_ranks(METHODS[label]):
        changes["federation.ranks"] = f"fixed(rank={mean_rank(mix)})"
    return changes


def tuned(label: str, rate: float) -> str:
    """Name of the tuning arm."""
    return f"{label}, rate {rate:g}"


@functools.cache
def tuning_part() -> Part:
    """All methods with all rates, half as long, judged on the validation examples."""
    base = variant(
        base_of("uniform"),
        {
            "data.validation_examples": 500,
            "data.test_examples": 64,
            "federation.rounds": ROUNDS // 2,
            "execution.eval_every": 100,
        },
    )
    arms = {tuned(name, rate): arm(name, "uniform", rate) for name in METHODS for rate in RATES}
    return Part("tuning", "learning rates", base, TASKS, arms, (TUNING_SEED,), shown=False)


def tuning(size: Size, records: Records) -> list[Part]:
    """The stage of tuning."""
    return [tuning_part()]


def best_rate(records: Records, label: str, task: str) -> float:
    """Select the rate with the highest validation accuracy; the smaller one in a tie."""

    def score(rate: float) -> float:
        config = tuning_part().config(tuned(label, rate), task, TUNING_SEED)
        found = records.get(config)
        return found["history"][-1]["validation_accuracy"] if found else -math.inf

    return max(RATES, key=lambda rate: (score(rate), -rate))


def reporting(size: Size, records: Records) -> list[Part]:
    """All methods with their tuned rates, on every task and mix of ranks."""
    return [
        Part(
            f"{task}_{mix}",
            f"{task}, {mix.replace('_', ' ')} mix of ranks",
            base_of(mix),
            (task,),
            {name: arm(name, mix, best_rate(records, name, task)) for name in METHODS},
            SEEDS,
        )
        for mix in MIXES
        for task in TASKS
    ]


def timing(size: Size, records: Records) -> list[Part]:
    """One measured run of three rounds per method, for the time of the server's step."""
    base = variant(
        base_of("uniform"),
        {"federation.rounds": 3, "execution.measure": True, "execution.eval_every": 3},
    )
    arms = {name: arm(name, "uniform", RATES[0]) for name in METHODS}
    return [Part("timing", "server times", base, TASKS[:1], arms, SEEDS[:1], shown=False)]


def first_methods(records: Records) -> tuple[str, ...]:
    """The methods with the highest mean accuracy; without all of their runs those of the plan."""
    if not records:
        return tuple(METHODS)[:CHECKED]
    parts = reporting("small", records)

    def mean(name: str) -> float:
        runs = [
            records.get(part.config(name, task, seed))
            for part in parts
            for task in part.tasks
            for seed in part.seeds
        ]
        found = [run["history"][-1]["accuracy"] for run in runs if run]
        return float(np.mean(found)) if len(found) == RUNS_OF_EACH else -math.inf

    return tuple(sorted(METHODS, key=mean, reverse=True)[:CHECKED])


def checking(size: Size, records: Records) -> list[Part]:
    """The first methods on all layers, with the uniform mix."""
    base = variant(base_of("uniform"), {"model.layers": None})
    first = first_methods(records)
    return [
        Part(
            f"{task}_all_layers",
            f"{task}, all layers",
            base,
            (task,),
            {name: arm(name, "uniform", best_rate(records, name, task)) for name in first},
            SEEDS[:3],
        )
        for task in TASKS
    ]


STUDY = Study(
    "leaderboard",
    (tuning, lambda size, records: reporting(size, records) + timing(size, records), checking),
    group="studies",
)
