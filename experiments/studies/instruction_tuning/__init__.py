"""Instruction tuning over nine natural clients: six methods on a very small language model.

Setting: stories260k (a Llama of 260,000 parameters, 5 layers of width 64, a vocabulary of 512
tokens, trained on children's stories), all linear layers adapted; Dolly and Alpaca as partitioned
by FederatedGPT-Shepherd's script, of whose ten clients nine are available (774 to 4,204 examples,
skewed by category); prompts are the bare instructions, prompt and completion have at most 128
tokens. Ranks 2, 4 and 8 for three clients each (FedIT needs one rank and has 8 for all), all
clients in every round, 6 local steps of 16 examples of about the same length, AdamW, clip 1, 8
rounds with a learning rate that falls linearly to a tenth.

All methods have the same tuning budget: whole runs with each of `RATES` and a separate seed, judged
by perplexity on 600 held-out examples of the clients. The global test set is not used for tuning.
Then the same three seeds for all methods. Perplexities per client are those of the global model on
the clients' held-out examples.

    # resumable
    python -m experiments.studies.instruction_tuning.run --data-dir DATA --models-dir MODELS
    python -m experiments.studies.instruction_tuning.report  # table and figure from the files
"""

import pathlib

from experiments.tools.study import Changes, Part, Records, Size, Study, variant
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
TASK = "dolly_alpaca(format='plain')"
RATES = (0.015, 0.03, 0.06)
TUNING_SEED, SEEDS = 100, (0, 1, 2)
TUNED_BY = "validation_perplexity"

METHODS = {
    "FLoRA": "flora",
    "FlexLoRA": "flexlora",
    "HetLoRA": "hetlora",
    "Fed-PLoRA": "fed_plora",
    "replication": "replication",
    "FedIT, rank 8 everywhere": "fedit",
}


def base(task: str) -> RunConfig:
    """Base config of all runs."""
    return RunConfig(
        data=DataConfig(task=task, validation_examples=600, max_length=128),
        model=ModelConfig(model="stories260k"),
        lora=LoraConfig(targets="all-linear"),
        federation=FederationConfig(
            clients=9, cohort=9, rounds=8, partition="natural", ranks="tiers(ranks=[2, 4, 8])"
        ),
        local=LocalConfig(schedule="linear(end=0.1)", batch=16, max_steps=6, group_by_length=True),
        execution=ExecutionConfig(eval_every=2),
    )


def arm(label: str, rate: float) -> Changes:
    """Config changes of a method with a learning rate."""
    changes = {"federation.method": METHODS[label], "local.learning_rate": rate}
    return changes | ({"federation.ranks": "fixed(rank=8)"} if METHODS[label] == "fedit" else {})


def tuned(label: str, rate: float) -> str:
    """Name of the tuning arm."""
    return f"{label}, rate {rate:g}"


def tuning(size: Size, records: Records) -> list[Part]:
    """Tuning: all methods with all rates, judged on held-out examples of the clients."""
    shared = variant(base, {"data.test_examples": 16, "execution.eval_every": 100})
    arms = {tuned(label, rate): arm(label, rate) for rate in RATES for label in METHODS}
    return [Part("tuning", "learning rates", shared, (TASK,), arms, (TUNING_SEED,), shown=False)]


def tuning_scores(records: Records, label: str) -> dict[float, float]:
    """Perplexity on the held-out examples by learning rate, of the finished runs."""
    (part,) = tuning("small", records)
    configs = {rate: part.config(tuned(label, rate), TASK, TUNING_SEED) for rate in RATES}
    return {
        rate: records[config]["history"][-1][TUNED_BY]
        for rate, config in configs.items()
        if config in records
    }


def best_rate(records: Records, label: str) -> float:
    """Select the rate with the lowest perplexity; the smaller one in a tie or without runs."""
    scores = tuning_scores(records, label)
    return min(RATES, key=lambda rate: (scores.get(rate, float("inf")), rate))


def reporting(size: Size, records: Records) -> list[Part]:
    """All methods with their tuned rates and all seeds."""
    arms = {label: arm(label, best_rate(records, label)) for label in METHODS}
    return [Part("methods", "six methods", base, (TASK,), arms, SEEDS)]


STUDY = Study("instruction_tuning", (tuning, reporting), group="studies")
