"""Liu et al., "HLoRA": mean of products, then SVD. arXiv 2503.00813.

Commands:

    python -m experiments.tools.small --data-dir DATA --only hlora
    python -m experiments.papers.hlora.report
"""

from collections.abc import Mapping

from experiments.tools.study import Changes, Part, Records, Size, Study, full, small, variant

TASKS = ("mrpc", "rte", "qqp")
SEEDS = (0, 1, 2)
LEARNED = ("sst2", "ag_news")
"""Not the paper's: three layers of MiniLM learn these in 20 rounds, and none of the paper's."""
LEARNED_SEEDS = (0, 1, 2, 3, 4)

EQUAL = "fixed(rank=8)"
MIXED = "tiers(ranks=[2, 4, 8, 16])"
"""Mean rank 7.5: about the budget of rank 8 for all. The paper's range is not known."""

ARMS: Mapping[str, Changes] = {
    "naive, equal ranks": {"federation.method": "fedit", "federation.ranks": EQUAL},
    "naive, mixed ranks": {"federation.method": "zero_padding", "federation.ranks": MIXED},
    "HLoRA, equal ranks": {"federation.method": "hlora", "federation.ranks": EQUAL},
    "HLoRA, mixed ranks": {"federation.method": "hlora", "federation.ranks": MIXED},
}

FULL: Changes = {
    "model.model": "roberta-large",
    "model.dtype": "bfloat16",
    "local.learning_rate": 5e-4,
}
"""The paper's model; what it does not publish is our choice."""


def parts(size: Size, records: Records) -> list[Part]:
    """The paper's table, from whose curves its Fig. 3 is made; small, easier tasks as well."""
    says = "naive averaging and reconstruction"
    if size == "full":
        return [Part("table", says, variant(full, FULL), TASKS, ARMS, SEEDS)]
    learned = f"{says} on tasks that this backbone learns"
    return [
        Part("table", says, small, TASKS, ARMS, SEEDS),
        Part("learned", learned, small, LEARNED, ARMS, LEARNED_SEEDS),
    ]


STUDY = Study("hlora", (parts,))
