"""Accuracy of the cost estimates of ``--explain``, for Llama-3.2-1B and for a smaller model.

The large model consists of shapes: nothing is allocated, and the estimate is compared with XLA's
memory analysis of the round, compiled for this machine's CPU. The small model has random weights
and is trained, each time in its own process, whose resident memory is measured.

    # resumable
    python -m experiments.benchmarks.cost_estimates.run --data-dir DATA --models-dir MODELS
    python -m experiments.benchmarks.cost_estimates.report  # the README's table
"""

import dataclasses
import pathlib
from typing import Any, Literal

from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
)

RESULTS = pathlib.Path(__file__).parent / "results"
LARGE, TOKENIZER = "llama-3.2-1b", "stories260k"
Storage = Literal["float32", "bfloat16", "int8", "nf4"]
STORAGES: tuple[Storage, ...] = ("bfloat16", "int8", "nf4")
CLIENTS = 9
CARDS = (24e9, 80e9, 141e9)
"""Memory of the devices whose number of clients is estimated, in bytes."""

SMALL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MEASURED: dict[str, dict[str, Any]] = {
    "one client at a time": {"clients_per_step": 1},
    "the same, layers recomputed": {"clients_per_step": 1, "remat": True},
    "two at a time, layers recomputed": {"clients_per_step": 2, "remat": True},
}
"""Measured runs of the small model."""


def large(storage: Storage, *, data_dir: str, model: str) -> RunConfig:
    """Nine clients at once, rank 16 on all linear layers, 4 texts of 512 tokens in a step."""
    return RunConfig(
        data=DataConfig(task="dolly_alpaca(format='plain')", data_dir=data_dir, max_length=512),
        model=ModelConfig(model=model, dtype="bfloat16", storage=storage, remat=True),
        lora=LoraConfig(targets="all-linear"),
        federation=FederationConfig(
            method="hetlora",
            clients=CLIENTS,
            cohort=CLIENTS,
            rounds=1,
            partition="natural",
            ranks="fixed(rank=16)",
        ),
        local=LocalConfig(batch=4, max_steps=8),
        execution=ExecutionConfig(clients_per_step=CLIENTS),
    )


def small(*, clients_per_step: int, remat: bool = False, data_dir: str, model: str) -> RunConfig:
    """Two clients of the small model, 8 texts of 256 tokens in a step."""
    made = large("float32", data_dir=data_dir, model=model)
    return dataclasses.replace(
        made,
        data=dataclasses.replace(made.data, max_length=256, train_examples=400, test_examples=20),
        model=ModelConfig(model=model, remat=remat),
        federation=dataclasses.replace(made.federation, cohort=2, rounds=2),
        local=LocalConfig(batch=8, max_steps=1),
        execution=ExecutionConfig(clients_per_step=clients_per_step),
    )
