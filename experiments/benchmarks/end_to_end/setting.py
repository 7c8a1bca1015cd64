"""The experiment: its size, its config, and its work in files."""

import dataclasses
import json
import pathlib

import numpy as np

from experiments.benchmarks.cohort import base
from experiments.benchmarks.end_to_end import work
from fedjax_lora import models
from fedjax_lora.data.batch_shapes import first_fitting
from fedjax_lora.federated import optimizers
from fedjax_lora.runs import build
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
    to_dict,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Size of the experiment."""

    clients: int = 100
    cohort: int = 10
    rounds: int = 20
    train: int = 1600
    test: int = 500
    tokens: int = 64
    batch: int = 16
    ranks: tuple[int, ...] = (4, 8, 16, 32)
    every: int = 10  # rounds between evaluations
    rate: float = 1.2e-2


def config(setting: Setting, model: str, data_dir: str | None) -> RunConfig:
    """Return the config for ``fedjax-lora run``."""
    return RunConfig(
        data=DataConfig(
            task="ag_news" if data_dir else "docstrings",
            data_dir=data_dir,
            train_examples=setting.train,
            test_examples=setting.test,
            max_length=setting.tokens,
        ),
        model=ModelConfig(model=model),
        federation=FederationConfig(
            method="zero_padding",
            clients=setting.clients,
            cohort=setting.cohort,
            rounds=setting.rounds,
            partition="dirichlet(alpha=0.5)",
            ranks=f"tiers(ranks={list(setting.ranks)})",
        ),
        local=LocalConfig(
            batch=setting.batch, learning_rate=setting.rate, schedule="linear(end=0.1)"
        ),
        execution=ExecutionConfig(eval_every=setting.every),
    )


def lay_out(setting: Setting, folder: pathlib.Path, data_dir: str | None) -> dict[str, int]:
    """Write the model, our config and the work of all rounds; returns `tokens`."""
    base.write("minilm", folder / "model", data_dir)
    made = build.build(config(setting, str(folder / "model"), data_dir))
    (folder / "config.json").write_text(json.dumps(to_dict(made.config)), encoding="utf-8")
    task = made.inputs.assets.task
    splits = {"train": task.train, "test": task.test}
    rounds = _rounds(made)
    work.save(
        work.Work(
            folder=folder,
            tokens=setting.tokens,
            texts={name: list(split.texts) for name, split in splits.items()},
            labels={name: np.asarray(split.labels).tolist() for name, split in splits.items()},
            rounds=rounds,
            start=_start(made),
        )
    )
    return tokens(made, rounds)


def tokens(made: build.Run, rounds: work.Rounds) -> dict[str, int]:
    """Count the tokens of all training batches: real ones, and with each contender's padding."""
    length, shapes = made.federation.length, made.round_spec.shapes
    total = {"real": 0, "padded to a batch's longest": 0, "room in our shapes": 0}
    for t, k in np.ndindex(rounds.steps.shape):
        for batch in rounds.batches(t, k):
            real, longest = length[batch].sum(), length[batch].max()
            ours = shapes[int(first_fitting(shapes, np.array([len(batch), longest, real])))]
            counted = (real, len(batch) * longest, ours.tokens)
            for name, count in zip(total, counted, strict=True):
                total[name] += int(count)
    return total


def _rounds(made: build.Run) -> work.Rounds:
    local, how, count = made.config.local, made.config.execution, made.config.federation.rounds
    factor = optimizers.schedule(local.schedule, rounds=count)
    rates = [local.learning_rate * float(np.asarray(factor(t))) for t in range(count)]
    plans = [made.federation.plan(t, made.ranks.initial, rate) for t, rate in enumerate(rates)]
    stack = lambda of: np.stack([of(plan) for plan in plans])  # noqa: E731
    ended = np.arange(1, count + 1)
    return work.Rounds(
        id=stack(lambda plan: plan.id),
        rank=stack(lambda plan: plan.rank),
        weight=stack(lambda plan: plan.weight),
        steps=stack(lambda plan: plan.batches.steps),
        index=stack(lambda plan: plan.batches.index),
        valid=stack(lambda plan: plan.batches.valid),
        rate=stack(lambda plan: plan.rate),
        tested=(ended % how.eval_every == 0) | (ended == count),
    )


def _start(made: build.Run) -> dict[str, np.ndarray]:
    """The initial global adapter in PyTorch's layout: ``[R, i]`` by module name."""
    config = made.inputs.assets.model.config
    return {
        models.hf_module(config, path, layer): a.T
        for path, pair in made.begin().state.server.adapter.items()
        for layer, a in enumerate(np.asarray(pair.a))
    }
