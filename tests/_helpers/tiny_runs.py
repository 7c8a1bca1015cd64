"""Whole runs on a random model and made-up texts: seconds each."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from fedjax_lora import methods, models
from fedjax_lora.core.errors import InputError
from fedjax_lora.data import Split, Task, TaskData, Tokens
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.runs.build import Assets
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
)
from tests._helpers import problems

ROUNDS = 4
CONFIG = RunConfig(
    data=DataConfig(task="made_up", max_length=problems.WIDTH),
    model=ModelConfig(model="tiny"),
    federation=FederationConfig(
        clients=5, cohort=2, rounds=ROUNDS, partition="iid", ranks="tiers(ranks=[1, 2, 4])"
    ),
    local=LocalConfig(batch=2, max_steps=2, schedule="linear(end=0.1)"),
    execution=ExecutionConfig(checkpoint_every=2, eval_every=3),
)
LEFT = ("metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
"""Files that are the same, byte for byte, whenever the same config runs."""


def change(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The config with some fields exchanged, by dotted name."""
    for name, value in changes.items():
        group, field = name.split(".")
        changed = dataclasses.replace(getattr(config, group), **{field: value})
        config = dataclasses.replace(config, **{group: changed})
    return config


def with_method(name: str) -> dict[str, Any]:
    """A method with mixed ranks, or one rank if it is defined for nothing else."""
    spec = LoraSpec(targets=(LoraTarget("layer", 8, 8, None),), rank=4, alpha=4.0)
    try:
        methods.make(name, spec).check(np.array([1, 4]))
    except InputError:
        return {"federation.method": name, "federation.ranks": "fixed(rank=2)"}
    return {"federation.method": name}


def assets() -> Assets:
    """Texts of one length that determine the class; the first 12 also validate and test."""
    tokens = Tokens(*map(np.asarray, problems.texts()))
    length = np.full_like(tokens.length, problems.WIDTH)  # one bucket: compiles in half the time
    tokens = tokens._replace(ids=np.maximum(tokens.ids, 1), length=length)
    few = Tokens(*(x[:12] for x in tokens))
    train, test = (Split([""] * len(x.label), None, x.label, None) for x in (tokens, few))
    task = Task("made_up", "texts that say their class", "", classes=("a", "b", "c", "d"))
    model = models.tiny(layers=1, vocab_size=64)
    return Assets(TaskData(task, task.classes, train, test, test, 0), model, tokens, few, few)


def left(folder: pathlib.Path) -> dict[str, bytes]:
    """The outputs of a finished run, for comparison with those of another."""
    return {name: (folder / name).read_bytes() for name in LEFT}
