"""Zhang, Hu, Xu, "Fed-PLoRA": parallel one-rank modules, select-n-fold. arXiv 2602.16936.

Commands:

    python -m experiments.tools.small --data-dir DATA --only fed_plora
    python -m experiments.papers.fed_plora.report
"""

from collections.abc import Mapping

from experiments.tools.study import Changes, Part, Records, Size, Study, full, small, variant

TASKS = ("sst2", "qnli", "qqp", "mrpc", "rte")
SMALL_TASKS = TASKS[:3]
"""Three layers barely learn MRPC and do not learn RTE from so little text, see the HLoRA study."""
SEEDS = (0, 1, 2)
MIXED = "tiers(ranks=[4, 8, 16, 32])"
EQUAL = "fixed(rank=32)"
SELECTIONS = ("random", "prefix", "round_robin", "importance")

MAIN: Mapping[str, Changes] = {
    "Fed-PLoRA": {"federation.method": "fed_plora", "federation.ranks": MIXED},
    "FLoRA": {"federation.method": "flora", "federation.ranks": MIXED},
    "FlexLoRA": {"federation.method": "flexlora", "federation.ranks": MIXED},
    "HetLoRA": {"federation.method": "hetlora", "federation.ranks": MIXED},
    "FedIT, rank 32 for all": {"federation.method": "fedit", "federation.ranks": EQUAL},
}
FIG3: Mapping[str, Changes] = {
    "PLoRA": {"lora.scale": "alpha/R"},
    "PrsLoRA": {"lora.scale": "alpha/sqrt(R)"},
}
FIG4: Mapping[str, Changes] = {
    selection: {
        "federation.method": f"fed_plora(selection={selection!r})",
        "federation.ranks": MIXED,
    }
    for selection in SELECTIONS
}
FULL: Changes = {"model.model": "bert-base"}
"""The paper's model; unpublished settings are our choice."""
MEASURED: Changes = {"execution.measure": True, "federation.rounds": 10}


def parts(size: Size, records: Records) -> list[Part]:
    """The table of GLUE tasks, the figures, and the measured rounds."""
    base = small if size == "small" else variant(full, FULL)
    tasks, one = SMALL_TASKS if size == "small" else TASKS, TASKS[:1]
    equal = variant(base, {"federation.ranks": EQUAL, "lora.alpha": 16.0})
    return [
        Part("glue", "methods on GLUE tasks", base, tasks, MAIN, SEEDS),
        Part("measured", "noise, similarity and cost", variant(base, MEASURED), one, MAIN, SEEDS),
        Part("fig3", "the scale with equal ranks", equal, one, FIG3, SEEDS),
        Part("fig4", "which modules are trained", base, one, FIG4, SEEDS),
    ]


STUDY = Study("fed_plora", (parts,))
