"""Liu et al., "HLoRA": mean of products, then SVD. arXiv 2503.00813.

python -m experiments.small --data-dir DATA --only hlora
python -m experiments.hlora.report
"""

from collections.abc import Mapping

from experiments.study import Changes, Part, Records, Size, Study, small
from fedjax_lora.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
)

TASKS = ("mrpc", "rte", "qqp")
SEEDS = (0, 1, 2)
EQUAL = "fixed(rank=8)"
MIXED = "tiers(ranks=[2, 4, 8, 16])"
"""Mean rank 7.5: about the budget of rank 8 for all. The paper's range is not known."""

ARMS: Mapping[str, Changes] = {
    "naive, equal ranks": {"federation.method": "fedit", "federation.ranks": EQUAL},
    "naive, mixed ranks": {"federation.method": "zero_padding", "federation.ranks": MIXED},
    "HLoRA, equal ranks": {"federation.method": "hlora", "federation.ranks": EQUAL},
    "HLoRA, mixed ranks": {"federation.method": "hlora", "federation.ranks": MIXED},
}


def full_base(task: str) -> RunConfig:
    """The paper's model and tasks; what it does not publish is our choice."""
    return RunConfig(
        data=DataConfig(task=task, max_length=128),
        model=ModelConfig(model="roberta-large", dtype="bfloat16", dropout=None),
        lora=LoraConfig(targets="attention-qv"),
        federation=FederationConfig(
            clients=100, cohort=10, rounds=100, partition="dirichlet(alpha=0.5)"
        ),
        local=LocalConfig(learning_rate=5e-4, schedule="linear(end=0.1)", batch=16, epochs=1),
        execution=ExecutionConfig(eval_every=4),
    )


def parts(size: Size, records: Records) -> list[Part]:
    """The paper's table, from whose curves its Fig. 3 is made."""
    base = small if size == "small" else full_base
    return [Part("table", "naive averaging and reconstruction", base, TASKS, ARMS, SEEDS)]


STUDY = Study("hlora", (parts,))
