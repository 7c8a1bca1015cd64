"""Rounds to be compiled for targets: shapes alone, of an encoder that fills the lanes of a TPU."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from fedjax_lora import models
from fedjax_lora.core import trees
from fedjax_lora.data import Split, Task, TaskData, Tokens
from fedjax_lora.models.encoder_config import EncoderConfig
from fedjax_lora.models.init import random_params
from fedjax_lora.models.module_types import module_of
from fedjax_lora.runs import cost
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
)
from fedjax_lora.runs.loading import Assets

VOCABULARY, HIDDEN, LENGTH, RANK, BATCH, CLIENTS = 512, 256, 64, 8, 128, 16
ENCODER = EncoderConfig(
    family="bert", vocab_size=VOCABULARY, embedding_size=HIDDEN, hidden=HIDDEN, layers=2, heads=4,
    intermediate=4 * HIDDEN, max_positions=LENGTH, type_vocab=2, pad_token_id=0, num_labels=4,
    dtype="bfloat16",
).with_dropout(0.0)  # fmt: skip


def outline(**execution: Any) -> cost.Outline:
    """The round of `config` on the current target, with one shape of a step: the largest."""
    made = cost.outline_run(config(**execution), assets())
    spec = dataclasses.replace(made.round_spec, shapes=made.round_spec.shapes[-1:])
    return made._replace(round_spec=spec)


def config(**execution: Any) -> RunConfig:
    """A round of 16 clients with two steps of 128 texts of 64 tokens."""
    return RunConfig(
        data=DataConfig(task="made_up", max_length=LENGTH),
        model=ModelConfig(model="tiny", dtype="bfloat16"),
        federation=FederationConfig(
            method="zero_padding", clients=CLIENTS, cohort=CLIENTS, rounds=1, partition="iid",
            ranks=f"fixed(rank={RANK})",
        ),
        local=LocalConfig(batch=BATCH, max_steps=2, epochs=2),
        execution=ExecutionConfig(**execution),
    )  # fmt: skip


def assets() -> Assets:
    """The encoder's shapes, and 256 texts."""
    params = jax.eval_shape(functools.partial(random_params, ENCODER), jax.random.key(0))
    model = models.Pretrained(
        module=module_of(ENCODER),
        params=params,
        config=ENCODER,
        tokenizer=None,
        fingerprint="shapes",
        folder=None,
        new_params=tuple(trees.flat(params)),
    )
    count = 16 * CLIENTS
    ids = np.ones((count, LENGTH), np.int32)
    label = (np.arange(count) % 4).astype(np.int32)
    tokens = Tokens(ids, np.zeros_like(ids), np.full(count, LENGTH, np.int32), label)
    split = Split([""] * count, None, label, None)
    task = Task("made_up", "texts of one length", "", classes=("a", "b", "c", "d"))
    return Assets(TaskData(task, task.classes, split, split, split, 0), model, tokens, None, tokens)
