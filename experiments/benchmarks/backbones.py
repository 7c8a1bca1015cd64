"""Backbones by their shapes alone, and rounds on made-up tokens: nothing is read or downloaded."""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from fedjax_lora import models
from fedjax_lora.core import trees
from fedjax_lora.core.quantization import dtype_of
from fedjax_lora.data import Split, Task, TaskData, Tokens
from fedjax_lora.models import DecoderConfig, EncoderConfig
from fedjax_lora.models.init import abstract_params, random_params
from fedjax_lora.models.module_types import Config, module_of
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
)
from fedjax_lora.runs.loading import Assets

RATE = 1e-3


def _encoder(family: str, hidden: int, layers: int, heads: int, words: int) -> EncoderConfig:
    roberta = family == "roberta"
    return EncoderConfig(
        family=family, vocab_size=words, embedding_size=hidden, hidden=hidden, layers=layers,
        heads=heads, intermediate=4 * hidden, max_positions=514 if roberta else 512,
        type_vocab=1 if roberta else 2, pad_token_id=1 if roberta else 0, num_labels=4,
        dtype="bfloat16",
    ).with_dropout(0.0)  # fmt: skip


def _decoder(hidden: int, layers: int, heads: int, wide: int, words: int) -> DecoderConfig:
    return DecoderConfig(
        family="llama", vocab_size=words, hidden=hidden, layers=layers, heads=heads,
        kv_heads=max(heads // 4, 1), head_dim=hidden // heads, intermediate=wide,
        max_positions=4096, tied=True, dtype="bfloat16", remat=True,
    )  # fmt: skip


BACKBONES: Mapping[str, Config] = MappingProxyType(
    {
        "minilm": _encoder("bert", 384, 6, 12, 30522),
        "bert-base": _encoder("bert", 768, 12, 12, 30522),
        "roberta-large": _encoder("roberta", 1024, 24, 16, 50265),
        "llama-1b": _decoder(2048, 16, 32, 8192, 128256),
        "llama-8b": dataclasses.replace(_decoder(4096, 32, 32, 14336, 128256), tied=False),
        "tiny": _encoder("bert", 32, 2, 2, 100),
        "tiny-llama": _decoder(128, 2, 4, 64, 100),
    }
)
"""The shapes of published checkpoints; two tiny ones for rehearsals."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A round: every client takes the same number of steps on texts of one length.

    Attributes:
      backbone: a key of `BACKBONES`.
      clients: of the cohort.
      batch: texts in a step.
      length: tokens of a text.
      steps: of a client.
      method: federated method.
      clients_per_step: trained at once on a device; None is chosen by its memory.
      mode: ``vmap`` or ``sharded``.
      scan_unroll: layers in a step of the layer loop; None is the library's choice.
      ranks: of the clients.
    """

    backbone: str
    clients: int
    batch: int
    length: int
    steps: int = 4
    method: str = "zero_padding"
    clients_per_step: int | None = None
    mode: str = "vmap"
    scan_unroll: int | None = None
    ranks: str = "tiers(ranks=[4, 8, 16, 32])"

    @property
    def language(self) -> bool:
        """Whether the backbone predicts tokens, in all linear layers; else classes, in two."""
        return isinstance(BACKBONES[self.backbone], DecoderConfig)

    @property
    def tokens(self) -> int:
        """Tokens of a round."""
        return self.clients * self.steps * self.batch * self.length


def run_config(work: Work) -> RunConfig:
    """Return the run whose rounds are the work."""
    return RunConfig(
        data=DataConfig(task="made_up", max_length=work.length),
        model=ModelConfig(model=work.backbone, dtype="bfloat16", remat=work.language),
        lora=LoraConfig(targets="all-linear" if work.language else "attention-qv"),
        federation=FederationConfig(
            method=work.method, clients=work.clients, cohort=work.clients, rounds=1,
            partition="iid", ranks=work.ranks,
        ),
        local=LocalConfig(batch=work.batch, max_steps=work.steps, learning_rate=RATE),
        execution=ExecutionConfig(mode=work.mode, clients_per_step=work.clients_per_step),  # type: ignore[arg-type]
    )  # fmt: skip


def assets(work: Work, *, weights: bool) -> Assets:
    """Make data and model of a round.

    Args:
      work: the round.
      weights: False makes shapes alone; else parameters are drawn on the device.
    """
    config = dataclasses.replace(BACKBONES[work.backbone], scan_unroll=work.scan_unroll)
    params = _drawn(config) if weights else abstract_params(config, "bfloat16")
    model = models.Pretrained(
        module=module_of(config), params=params, config=config, tokenizer=None,
        fingerprint="made up", folder=None, new_params=tuple(trees.flat(params)),
        storage="bfloat16",
    )  # fmt: skip
    task, tokens = _task(work), _tokens(work, config.vocab_size)
    split = Split([""] * len(tokens.label), None, tokens.label, None)
    return Assets(TaskData(task, task.classes, split, split, split, 0), model, tokens, None, tokens)


def _drawn(config: Config) -> Any:
    """Draw parameters in one program, which stores matrices of the base in bfloat16."""

    def draw(key: jax.Array) -> Any:
        flat = trees.flat(random_params(config, key))
        return {p: x if p == "head" else x.astype(dtype_of(p, "bfloat16")) for p, x in flat.items()}

    flat = jax.jit(draw)(jax.random.key(0))
    return {"head": {}} | trees.nested(flat)


def _task(work: Work) -> Task:
    if work.language:
        return Task("made_up", "texts of one length", "", classes=("all",), metric="perplexity")
    return Task("made_up", "texts of one length", "", classes=("a", "b", "c", "d"))


@functools.cache
def _tokens(work: Work, words: int) -> Tokens:
    rng = np.random.default_rng(0)
    count = work.clients * work.steps * work.batch
    ids = rng.integers(5, words, (count, work.length), dtype=np.int32)
    types = np.full_like(ids, int(work.language))  # all tokens are learned, or one segment
    label = np.zeros(count, np.int32) if work.language else rng.integers(0, 4, count, np.int32)
    return Tokens(ids, types, np.full(count, work.length, np.int32), label)
