"""The options of a run: frozen dataclasses, checked when they are made."""

import dataclasses
from typing import Literal

from fedjax_lora.core.errors import raise_all
from fedjax_lora.runs.config.validation import problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned."""

    task: str = "docstrings"
    """Task by name (`fedjax-lora tasks` lists them), or your files:
    file(train='a.csv', test='b.csv', text='text', label='label')."""
    data_dir: str | None = None
    """Folder with the task's files; without it they come from the Hugging Face hub."""
    train_examples: int | None = None
    """Use this many training examples, drawn from the seed; all by default."""
    validation_examples: int = 0
    """Take this many examples out of the training data for validation."""
    test_examples: int | None = None
    """Use this many test examples; all by default."""
    max_length: int = 64
    """Cut texts to this many tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is adapted."""

    model: str = "minilm"
    """Model by name (`fedjax-lora models` lists them), checkpoint folder, or hub id."""
    layers: int | None = None
    """Keep only the first so many layers."""
    pooling: Literal["family", "mean"] = "family"
    """What the classifier reads: as the model family does, or the mean of all tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the base's computation; adapters and their optimizer stay float32."""
    storage: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """How the frozen base is kept in memory; int8 and nf4 need [quantized]."""
    dropout: float | None = 0.0
    """Dropout rate of the base in training; None takes the checkpoint's own."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Where adapters go and how they are scaled."""

    targets: str = "attention-qv"
    """Layers to adapt: attention-qv, attention, all-linear, or a regular expression on paths."""
    alpha: float | None = None
    """LoRA's alpha; by default the largest rank, hence scale 1 under alpha/R."""
    scale: Literal["alpha/R", "alpha/r", "alpha/sqrt(R)", "alpha/sqrt(r)"] = "alpha/R"
    """Multiplier of an adapter: R is the largest rank of the federation, r the client's own."""
    lora_layers: tuple[int, ...] | None = None
    """Adapt only these layers (counted from 0)."""
    lora_init: Literal["kaiming", "gaussian"] = "kaiming"
    """Initial values of the first factor; the second is zero."""
    lora_dropout: float = 0.0
    """Dropout rate on the input of the trained components."""
    adapter: str | None = None
    """Begin with this PEFT adapter (a folder) and its head, if that has as many outputs. Its rank
    is at most the largest of the federation; components beyond it begin as lora_init says. Without
    alpha, its own scale is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FederationConfig:
    """Who takes part, and how they are aggregated."""

    method: str = "fed_plora"
    """Federated method, for example fed_plora or "replication(inner='uniform')"."""
    clients: int = 50
    """Clients in the federation."""
    cohort: int = 10
    """Clients drawn each round."""
    rounds: int = 20
    """Rounds of the run."""
    partition: str = "dirichlet(alpha=0.5)"
    """How the training examples are divided: iid, dirichlet, shards, quantity, natural, quality."""
    min_examples: int = 2
    """Every client has at least this many examples."""
    ranks: str = "tiers(ranks=[2, 4, 8, 16])"
    """Who has which rank: fixed(rank=8), tiers(ranks=[2, 8], shares=[0.9, 0.1]) (shares also
    'uniform', 'heavy_tail', 'normal'), random(low=2, high=8), table(ranks=[...]),
    budget(bytes=[1e5, 1e6], high=16), by_quality(low=5, high=20), or by validation score after
    the first round: loss_based(low=5, high=20, share=0.1)."""
    heads: Literal["average", "frozen", "local"] = "average"
    """The task head: averaged like a FedAvg model, left as initialised, or each client its own."""
    client_weights: Literal["examples", "tokens"] = "examples"
    """What a client counts by where a method weights by examples: how many it has, as in FedAvg,
    or how many tokens it learns from (of completions, in a language task)."""
    updates: tuple[str, ...] = ()
    """What happens to clients' updates, in this order: clip(norm=1.0),
    gaussian_noise(multiplier=1.0, norm=1.0); int8, bfloat16; reject_outliers, median,
    trimmed_mean(share=0.1)."""
    faults: tuple[str, ...] = ()
    """What goes wrong with drawn clients before they send, in this order:
    dropout(probability=0.1), stragglers(share=0.3, work=0.5)."""
    server_optimizer: str = "none"
    """What follows the method's change: none, sgd(momentum=0.9), adam, yogi."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """What a client does in a round."""

    learning_rate: float = 5e-3
    """Peak learning rate."""
    optimizer: str = "adamw(weight_decay=0.0)"
    """Any optax optimizer with its options; its state starts afresh each round."""
    schedule: str = "constant"
    """Learning rate over the rounds: constant, linear, cosine, warmup_cosine, exponential."""
    clip: float | None = 1.0
    """Clip each gradient to this global norm; None for no clipping."""
    batch: int = 16
    """Examples in a local batch."""
    epochs: int = 1
    """Passes over a client's examples in a round."""
    group_by_length: bool = False
    """Batch texts of about the same length: less padding, less random batches."""
    max_steps: int | None = None
    """Stop a client after this many steps in a round."""
    prox: float = 0.0
    """FedProx: pulls a client towards what it began the round with, with this weight."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How the run is computed; nothing here changes what is computed beyond rounding."""

    mode: Literal["vmap", "loop", "sharded"] = "vmap"
    """Clients together on one device, one after another, or spread over all devices."""
    clients_per_step: int | None = None
    """Clients trained at once per device; by default one on a CPU and all on an accelerator."""
    devices: int | None = None
    """Devices used by mode sharded; all by default."""
    mesh: tuple[int, int] = (-1, 1)
    """Mode sharded: sizes of the mesh axes clients and model, -1 for all devices that are left.
    The cohort is divided along clients. With more than one device along model the base is too: each
    keeps a part of every matrix."""
    eval_every: int = 1
    """Evaluate the global model after every so many rounds, and after the last."""
    eval_batch: int = 64
    """Examples in an evaluation batch."""
    measure: bool = False
    """Measure every round: noise of its start and its aggregation, spectrum of the global adapter,
    similarity of the clients' components, server time, a client's memory."""
    checkpoint_every: int = 1
    """Save a checkpoint after every so many rounds (unless one is still being written), after the
    last, and when stopped."""
    checkpoint_keep: int = 2
    """Keep so many of the newest checkpoints, and the best one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, completely: the same config gives the same numbers."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    federation: FederationConfig = dataclasses.field(default_factory=FederationConfig)
    local: LocalConfig = dataclasses.field(default_factory=LocalConfig)
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        raise_all("This run is impossible", problems(self))


def demo() -> RunConfig:
    """What ``fedjax-lora run`` does without ``--task``: the built-in task in a few minutes.

    Short texts and few steps a round, so that two CPU cores are enough.
    """
    return RunConfig(
        data=DataConfig(max_length=32),
        federation=FederationConfig(rounds=12),
        local=LocalConfig(learning_rate=1e-2, max_steps=4),
        execution=ExecutionConfig(eval_every=2),
    )
