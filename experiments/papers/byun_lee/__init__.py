"""Byun & Lee, "Towards Federated Low-Rank Adaptation of Language Models with Rank Heterogeneity".

arXiv 2406.17477 (NAACL 2025): replication padding and loss-based rank allocation. The README in
this folder lists the claims, the published part of the setting, and the results.

    python -m experiments.tools.small --data-dir DATA --only byun_lee
    python -m experiments.papers.byun_lee.report
"""

from collections.abc import Callable, Mapping

from experiments.papers.byun_lee.diagnostic import diagnose
from experiments.tools.study import Changes, Part, Records, Size, Study, full, small, variant
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.figure_style import method_label

LOW, MIDDLE, HIGH = 5, 7, 20  # ranks
SHARE = 0.1  # of the clients have the high rank
SHARES = (0.1, 0.2, 0.5)  # Fig. 3
SEEDS = (0, 1, 2)
DIAGNOSTIC_SEEDS = tuple(range(12))  # one round each; accuracies vary much by seed
TASKS = ("ag_news", "dbpedia_14")

PROJECTIONS = "/attention/(query|key|value)$"
"""Three square matrices per layer, as implied by the paper's parameter counts; a guess which."""

SETTING: Changes = {
    "lora.targets": PROJECTIONS,
    "federation.partition": f"quality(share={SHARE})",
}
SMALL: Changes = SETTING | {"data.validation_examples": 100}
FULL: Changes = SETTING | {
    "data.validation_examples": 1000,
    "model.model": "distilbert",
    "federation.rounds": 50,
    "execution.eval_every": 2,
}
"""The paper's first model and data; unpublished settings are our choice."""

REPLICATION: Changes = {"federation.method": "replication"}
ZERO_PADDING: Changes = {"federation.method": "zero_padding"}
NORM_WEIGHTED: Changes = {"federation.method": "hetlora(gamma=1.0)"}
ZEROS = method_label("zero_padding")
"""Zero padding with its reading of components that nobody in a cohort owns; see its page."""
ZEROS_BY_NORM = f"norm-weighted {ZEROS}"


def by_loss(share: float = SHARE, order: str = "best") -> Changes:
    """Loss-based rank allocation of the paper, and its controls."""
    spec = f"loss_based(low={LOW}, high={HIGH}, share={share}, order={order!r})"
    return {"federation.ranks": spec}


def same_for_all(rank: int) -> Changes:
    """FedIT with one rank for all clients."""
    return {"federation.method": "fedit", "federation.ranks": f"fixed(rank={rank})"}


FIG2: Mapping[str, Changes] = {
    "replication": REPLICATION | by_loss(),
    ZEROS: ZERO_PADDING | by_loss(),
    ZEROS_BY_NORM: NORM_WEIGHTED | by_loss(),
    f"rank {LOW} for all": same_for_all(LOW),
    f"rank {MIDDLE} for all": same_for_all(MIDDLE),
    f"rank {HIGH} for all": same_for_all(HIGH),
}
FIG3: Mapping[str, Changes] = {
    f"{name}, {share:.0%} high": method | by_loss(share)
    for share in SHARES
    for name, method in (("replication", REPLICATION), (ZEROS, ZERO_PADDING))
}
FIG4: Mapping[str, Changes] = {
    "loss-based": REPLICATION | by_loss(),
    "random": REPLICATION | by_loss(order="random"),
    "inverse": REPLICATION | by_loss(order="worst"),
    "by the true quality": REPLICATION
    | {"federation.ranks": f"by_quality(low={LOW}, high={HIGH})"},
}
DIAGNOSTIC: Changes = REPLICATION | {
    "federation.clients": 10,
    "federation.cohort": 10,
    "federation.rounds": 1,
    "federation.ranks": f"by_quality(low={LOW}, high={HIGH})",
    "local.schedule": "constant",
    "local.max_steps": None,
}


def parts(size: Size, records: Records) -> list[Part]:
    """The figures of the paper."""
    base = variant(small, SMALL) if size == "small" else variant(full, FULL)
    one_aggregation = {"data.train_examples": 3000 if size == "small" else 12000}
    chosen = [
        Part("fig2", "padding rules and equal ranks", base, TASKS, FIG2, SEEDS),
        Part("fig3", "share of high-rank clients", base, TASKS[:1], FIG3, SEEDS),
        Part("fig4", "who gets the high rank", base, TASKS[:1], FIG4, SEEDS),
        _diagnostic(variant(base, one_aggregation)),
    ]
    if size == "full":
        albert = variant(base, {"model.model": "albert-base"})
        chosen.append(Part("fig2_albert", "Fig. 2 with ALBERT", albert, TASKS, FIG2, SEEDS))
    return chosen


def _diagnostic(base: Callable[[str], RunConfig]) -> Part:
    title = "a high-quality client before and after one aggregation"
    arms = {"one aggregation": DIAGNOSTIC}
    return Part("diagnostic", title, base, TASKS[:1], arms, DIAGNOSTIC_SEEDS, shown=False)


STUDY = Study("byun_lee", (parts,), {"diagnostic": diagnose})
