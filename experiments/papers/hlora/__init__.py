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
"""Additional tasks, which three layers of MiniLM learn in 20 rounds, unlike the paper's tasks."""
LEARNED_SEEDS = (0, 1, 2, 3, 4)

EQUAL = "fixed(rank=8)"
MIXED = "tiers(ranks=[2, 4, 8, 16])"
"""Mean rank 7.5, about the budget of rank 8 for all clients; the paper's range is unknown."""

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
"""The paper's model; unpublished settings are our choice."""


def parts(size: Size, records: Records) -> list[Part]:
    """The paper's table, whose curves are its Fig. 3; in the small size also easier tasks."""
    says = "naive averaging and reconstruction"
    if size == "full":
        return [Part("table", says, variant(full, FULL), TASKS, ARMS, SEEDS)]
    learned = f"{says} on tasks that this backbone learns"
    return [
        Part("table", says, small, TASKS, ARMS, SEEDS),
        Part("learned", learned, small, LEARNED, ARMS, LEARNED_SEEDS),
    ]


STUDY = Study("hlora", (parts,))
