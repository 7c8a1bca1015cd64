"""The options of a run: frozen dataclasses, checked on creation."""

import dataclasses
from typing import Literal

from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.records import check_fields
from fedjax_lora.runs.config.validation import problems


class _Group:
    """A group of options, whose types are checked however it is created."""

    def __post_init__(self) -> None:
        check_fields(self, group=type(self).__name__.removesuffix("Config").lower())


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(_Group):
    """Options of the data."""

    task: str = "docstrings"
    """Task by name (`fedjax-lora tasks` lists them), or files of your own:
    file(train='a.csv', test='b.csv', text='text', label='label'). Options of file: train, test,
    text, pair, label, group, metric, format, delimiter, header, encoding, client_files, hub,
    config; `fedjax-lora tasks file` explains them. For language models there are instructions(...),
    conversations(...) and text(...), likewise."""
    data_dir: str | None = None
    """Folder with the task's files; without it they come from the Hugging Face hub."""
    train_examples: int | None = None
    """Use this many training examples, drawn with the seed; all by default."""
    validation_examples: int = 0
    """Take this many examples out of the training data for validation."""
    test_examples: int | None = None
    """Use this many test examples; all by default."""
    max_length: int = 64
    """Cut texts to this many tokens."""
    chat_date: str = "2024-07-26"
    """Date that a chat template prints in prompts, as YYYY-MM-DD: a run has the same on any day."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(_Group):
    """Options of the base model."""

    model: str = "minilm"
    """Model by name (`fedjax-lora models` lists them), checkpoint folder, or hub id."""
    layers: int | None = None
    """Keep only this many layers, the first ones."""
    pooling: Literal["family", "mean"] = "family"
    """Input of the classifier: that of the model family, or the mean over all tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of computation in the base; adapters and their optimizer stay float32. A CPU gains
    from bfloat16 only if it multiplies it (avx512_bf16, amx_bf16); others are told so."""
    precision: Literal["default", "highest"] = "default"
    """Precision of float32 products in the base, in training, scoring and generated answers: a TPU
    rounds their factors to bfloat16 and a GPU to TF32, unless this is highest. A CPU computes in
    float32. The commands evaluate and predict take that of the run."""
    storage: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    """Storage of the frozen base in memory; int8 and nf4 need fedjax-lora[quantized]."""
    dropout: float | None = 0.0
    """Dropout rate of the base in training; None is that of the checkpoint."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig(_Group):
    """Options of the adapters."""

    targets: str = "attention-qv"
    """Layers to adapt: attention-qv, attention, all-linear, or a regular expression on paths."""
    alpha: float | None = None
    """LoRA's alpha; by default the largest rank, hence scale 1 under alpha/R."""
    scale: Literal["alpha/R", "alpha/r", "alpha/sqrt(R)", "alpha/sqrt(r)"] = "alpha/R"
    """Multiplier of an adapter: R is the largest rank of the federation, r the client's own."""
    lora_layers: tuple[int, ...] | None = None
    """Adapt only these layers (counted from 0)."""
    lora_init: Literal["kaiming", "gaussian"] = "kaiming"
    """Initialisation of the first factor; the second is zero."""
    lora_dropout: float = 0.0
    """Dropout rate on the input of the trained components."""
    adapter: str | None = None
    """Start from this PEFT adapter (a folder) and its head, if that has as many outputs. Its rank
    is at most the largest of the federation; further components are initialised by lora_init.
    Without alpha, the scale of the adapter is kept."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FederationConfig(_Group):
    """Options of the federation and its method."""

    method: str = "fed_plora"
    """Federated method (`fedjax-lora methods` lists them), for example fed_plora or
    "replication(inner='uniform')"."""
    clients: int = 50
    """Clients in the federation."""
    cohort: int = 10
    """Clients drawn each round."""
    sampling: str = "uniform"
    """Who takes part in a round: uniform, weighted (by the clients' examples or tokens),
    round_robin, available(low=0.1, high=1.0)."""
    rounds: int = 20
    """Rounds of the run."""
    stop: str = "never"
    """End the run before its last round: target(score=0.75), or patience(evaluations=5) without a
    better score; by validation data if there is (--validation-examples), else by test data."""
    partition: str = "dirichlet(alpha=0.5)"
    """Partition of the training examples: iid, dirichlet(alpha=0.5, balanced=True), shards,
    quantity, natural, quality."""
    partition_seed: int | None = None
    """Seed of the partition alone; by default that of the run."""
    min_examples: int = 2
    """Smallest number of examples of a client."""
    ranks: str = "tiers(ranks=[2, 4, 8, 16])"
    """Ranks of the clients: fixed(rank=8), tiers(ranks=[2, 8], shares=[0.9, 0.1]) (shares also
    'uniform', 'heavy_tail', 'normal'), random(low=2, high=8), table(ranks=[...]),
    budget(bytes=[1e5, 1e6], high=16), by_quality(low=5, high=20), by_device(high=16) (the largest
    that is in time and fits into memory), or by validation score after the first round:
    loss_based(low=5, high=20, share=0.1)."""
    heads: Literal["average", "frozen", "local"] = "average"
    """Task head: averaged as in FedAvg, left as initialised, or a separate one for each client."""
    client_weights: Literal["examples", "tokens"] = "examples"
    """Weight of a client, in methods that weight by examples: the number of its examples, as in
    FedAvg, or of the tokens it learns from (in a language task, those of the completions)."""
    updates: tuple[str, ...] = ()
    """Transforms of the clients' updates, in this order: clip(norm=1.0),
    gaussian_noise(multiplier=1.0, norm=1.0) (or epsilon=8.0 for the multiplier; budget=8.0 ends the
    run in time), or central_noise with the same options, added by a trusted server; int8, bfloat16;
    reject_outliers, norm_bound(quantile=0.5), reject_dissimilar, krum(attackers=0.2), foolsgold,
    geometric_median, median, trimmed_mean(share=0.1)."""
    faults: tuple[str, ...] = ()
    """Faults of the clients in a cohort, in this order:
    dropout(probability=0.1), stragglers(share=0.3, work=0.5). Attackers are the same in all rounds:
    sign_flip(share=0.2, scale=10), scaling, gaussian, little_is_enough, inner_product, free_rider,
    inflated_counts, label_flip, backdoor(share=0.2, trigger=[1012, 3419])."""
    device_profiles: str = "none"
    """Devices of the clients, which give a run a simulated clock:
    classes(names=['jetson-nano', 'laptop-m1'], shares=[0.7, 0.3]) or file(path='devices.csv') with
    the columns flops, down, up, memory, availability."""
    deadline: str = "none"
    """When the server closes a round on that clock: none (it waits for all), first(over=1.3) (it
    draws more clients and waits for a cohort), after(seconds=60, over=1.3, late='partial')."""
    server_mode: str = "synchronous"
    """Whether a new model waits for the cohort: synchronous; or, on that clock and with a cohort at
    work at any time, fedasync(mixing=0.6), fedbuff(buffer=10), semi_synchronous(buffer=5). Methods
    that decompose products need mix='models'."""
    server_optimizer: str = "none"
    """Optimizer that follows the method's change: none, sgd(momentum=0.9), adam, yogi."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalConfig(_Group):
    """Options of local training."""

    learning_rate: float = 5e-3
    """Peak learning rate."""
    optimizer: str = "adamw(weight_decay=0.0)"
    """Any optax optimizer with its options; its state is initialised in each round."""
    schedule: str = "constant"
    """Learning rate over the rounds: constant, linear, cosine, warmup_cosine, exponential."""
    clip: float | None = 1.0
    """Clip each gradient to this global norm; None for no clipping."""
    batch: int = 16
    """Examples in a local batch."""
    epochs: int = 1
    """Epochs of a client in a round."""
    group_by_length: bool = False
    """Batch texts of similar length: less padding, but less random batches."""
    max_steps: int | None = None
    """Largest number of steps of a client in a round."""
    prox: float = 0.0
    """Weight of FedProx's term, which pulls a client towards its initial parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionConfig(_Group):
    """Options of execution, which change the numbers by rounding alone."""

    mode: Literal["vmap", "loop", "sharded"] = "vmap"
    """Clients vectorised on one device, in a loop, or spread over all devices."""
    clients_per_step: int | None = None
    """Clients trained at once on a device; by default one on a CPU, and on an accelerator as many
    as the estimate of --explain lets into its memory. The run's config records the number."""
    devices: int | None = None
    """Devices used by mode sharded; all by default."""
    mesh: tuple[int, int] = (-1, 1)
    """Mode sharded: sizes of the mesh axes clients and model, -1 for all remaining devices. The
    cohort is divided along clients. With more than one device along model the base is divided too:
    each device stores a part of every matrix."""
    step_shapes: int | None = None
    """Compile local steps for at most so many sizes of a batch, full or half: with fewer of them a
    run begins sooner, and computes more padding. By default three on a CPU and one on an
    accelerator, where padding costs little and compiling much."""
    eval_every: int = 1
    """Evaluate the global model every so many rounds, and after the last."""
    eval_examples: int | None = None
    """Evaluate on this many test examples, the same ones, and on all only after the last round;
    by default always on all. Records say how many with the name eval_examples."""
    eval_batch: int = 64
    """Examples in an evaluation batch."""
    evaluate_clients: bool = False
    """After the last round, score every client's own model and the global one on the client's mix
    of classes; compare then tells the mean over clients, the worst tenth, and each rank."""
    measure: bool = False
    """Measure every round: noise of initialisation and aggregation, spectrum of the global adapter,
    similarity of the clients' components, server time, memory of a client."""
    checkpoint_every: int = 1
    """Save a checkpoint every so many rounds (unless one is still being written), after the last,
    and when the run is stopped."""
    checkpoint_keep: int = 2
    """Number of newest checkpoints to keep; the best one is always kept."""


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
        check_fields(self)
        raise_all("This run is impossible", problems(self))


def demo() -> RunConfig:
    """Return the config of ``fedjax-lora run`` without ``--task``: a built-in task in a minute.

    Texts are short, rounds have few steps and the model few layers, so that two CPU cores are
    enough. The head is new and learns from few steps, hence the large learning rate; those of the
    adapters are no larger than usual, because a small alpha scales what they do.
    """
    return RunConfig(
        data=DataConfig(task="definitions", max_length=32),
        model=ModelConfig(layers=3, pooling="mean"),
        lora=LoraConfig(alpha=2.0),
        federation=FederationConfig(rounds=12),
        local=LocalConfig(learning_rate=4e-2, schedule="linear", batch=8, max_steps=6),
        execution=ExecutionConfig(step_shapes=1, eval_every=2),
    )


def chat_demo() -> RunConfig:
    """Return the config of ``fedjax-lora chat-demo``: a chat model learns in a few minutes.

    Texts are short and rounds have few steps. The base is stored in bfloat16, so that its layers
    are compiled once and not one by one; its weights were rounded to 4 bits before.
    """
    return RunConfig(
        data=DataConfig(task="descriptions", test_examples=60, max_length=96),
        model=ModelConfig(model="smollm2-135m", storage="bfloat16"),
        lora=LoraConfig(targets="attention"),
        federation=FederationConfig(partition="natural", clients=10, cohort=5, rounds=3),
        local=LocalConfig(learning_rate=3e-3, batch=4, max_steps=2),
        execution=ExecutionConfig(step_shapes=1, eval_every=3, eval_batch=10),
    )
