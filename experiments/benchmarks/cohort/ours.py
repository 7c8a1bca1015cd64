"""This library's round."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.cohort.work import RATE, Case, Work
from fedjax_lora import models
from fedjax_lora.data.batch_shapes import first_fitting, step_sizes
from fedjax_lora.runs import build
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
)


def task(data_dir: str | None) -> str:
    """Name of the task."""
    return "ag_news" if data_dir else "docstrings"


def config(case: Case, model: str, data_dir: str | None, mode: str = "vmap") -> RunConfig:
    """Return a run whose rounds are the case, with all clients in the cohort."""
    shares = [1 / len(case.ranks)] * len(case.ranks)
    examples = case.clients * case.batch * case.steps
    return RunConfig(
        data=DataConfig(
            task=task(data_dir),
            data_dir=data_dir,
            train_examples=examples,
            test_examples=1,
            max_length=case.tokens,
        ),
        model=ModelConfig(model=model),
        federation=FederationConfig(
            method="zero_padding(weights='uniform')",
            clients=case.clients,
            cohort=case.clients,
            rounds=1,
            partition="iid",
            ranks=f"tiers(ranks={list(case.ranks)}, shares={shares})",
        ),
        local=LocalConfig(batch=case.batch, max_steps=case.steps, learning_rate=RATE),
        execution=ExecutionConfig(mode=mode),  # type: ignore[arg-type]
    )


def prepare(case: Case, model: str, data_dir: str | None, mode: str = "vmap") -> Any:
    """Run and plan of the case's round."""
    made = build.build(config(case, model, data_dir, mode))
    return made, made.federation.plan(0, made.ranks.initial, RATE)


def work(case: Case, model: str, data_dir: str | None) -> Work:
    """The work of the round as arrays."""
    made, plan = prepare(case, model, data_dir)
    tokens, batches = made.inputs.train, plan.batches
    shapes = made.round_spec.shapes
    return Work(
        ids=np.asarray(tokens.ids),
        types=np.asarray(tokens.types),
        length=np.asarray(tokens.length),
        label=np.asarray(tokens.label),
        rank=plan.rank,
        index=batches.index,
        valid=batches.valid,
        steps=batches.steps,
        shape=np.array(shapes)[first_fitting(shapes, step_sizes(batches))],
    )


def contender(case: Case, model: str, data_dir: str | None, mode: str) -> Callable[[], float]:
    """Return a function that computes a round from the initial state and returns its mean loss."""
    made, plan = prepare(case, model, data_dir, mode)
    return _round(case, made, plan, made.step)


def compiled(case: Case, model: str, data_dir: str | None) -> tuple[Callable[[], float], str]:
    """Return `contender` and the text of its compiled program."""
    made, plan = prepare(case, model, data_dir)
    given = (made.inputs.base, made.inputs.train, made.begin().state, plan, jax.random.key(0))
    program = made.step.lower(*given).compile()
    return _round(case, made, plan, program), program.as_text()


def _round(case: Case, made: Any, plan: Any, round_fn: Callable[..., Any]) -> Callable[[], float]:
    key, start = jax.random.key(0), made.begin().state

    def round() -> float:
        # The round donates its input state.
        state = jax.tree.map(lambda x: x.copy(), start)
        state, seen = round_fn(made.inputs.base, made.inputs.train, state, plan, key)
        jax.block_until_ready(state)
        return float(np.mean(np.asarray(seen.loss)[: case.clients]))

    return round


def start(case: Case, model: str, data_dir: str | None) -> dict[str, np.ndarray]:
    """The initial global adapter in PyTorch's layout: ``[R, i]`` by module name."""
    made, _ = prepare(case, model, data_dir)
    config, named = made.inputs.assets.model.config, {}
    for path, pair in made.begin().state.server.adapter.items():
        for layer, a in enumerate(np.asarray(pair.a)):
            named[models.hf_module(config, path, layer)] = a.T
    return named
