"""Instruction tuning over nine natural clients: six methods on a very small language model.

Setting: stories260k (a Llama of 260,000 parameters, 5 layers of width 64, a vocabulary of 512
tokens, trained on children's stories), all linear layers adapted; Dolly and Alpaca as dealt by
FederatedGPT-Shepherd's script, of whose ten clients nine are at hand (774 to 4,204 examples, skewed
by category); prompts are the bare instructions, prompt and completion have at most 128 tokens.
Ranks 2, 4 and 8 for three clients each (FedIT, which needs one rank, has 8 for everybody), all
clients in every round, 6 local steps of 16 examples of about the same length, AdamW, clip 1, 8
rounds with a learning rate that falls linearly to a tenth.

The learning rate of each method is the best of `RATES` by perplexity on held-out examples of the
clients after `TUNING_ROUNDS` rounds with seed 0; the global test set is not looked at before. (0.1
was tried with FLoRA and FlexLoRA, diverged, and was left out for the others; replication and FedIT
have the rate that all others chose.) The perplexities per
client are those of the global model on the clients' held-out examples.

    python -m experiments.instruction_tuning.run --data-dir DATA --model STORIES260K    # resumable
    python -m experiments.instruction_tuning.report             # table and figure from the files
"""

import pathlib

from fedjax_lora.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
)

RESULTS = pathlib.Path(__file__).parent / "results"
RATES = (1e-2, 3e-2)
TUNING_ROUNDS = 4
SEEDS = (0, 1)

METHODS = {
    "FLoRA": "flora",
    "FlexLoRA": "flexlora",
    "HetLoRA": "hetlora",
    "Fed-PLoRA": "fed_plora",
    "replication": "replication",
    "FedIT, rank 8 everywhere": "fedit",
}


def get_config(
    method: str, *, rate: float, seed: int, data_dir: str, model: str, rounds: int = 8
) -> RunConfig:
    """One run."""
    return RunConfig(
        data=DataConfig(
            task="dolly_alpaca(format='plain')",
            data_dir=data_dir,
            validation_examples=600,
            max_length=128,
        ),
        model=ModelConfig(model=model),
        lora=LoraConfig(targets="all-linear"),
        federation=FederationConfig(
            method=method,
            clients=9,
            cohort=9,
            rounds=rounds,
            partition="natural",
            ranks="fixed(rank=8)" if method == "fedit" else "tiers(ranks=[2, 4, 8])",
        ),
        local=LocalConfig(
            learning_rate=rate,
            schedule="linear(end=0.1)",
            batch=16,
            max_steps=6,
            group_by_length=True,
        ),
        execution=ExecutionConfig(eval_every=2),
        seed=seed,
    )
