"""Claims that need other runs than those of the paper studies; planned in ``../PROTOCOL.md``.

* HLoRA on MRPC and QQP (arXiv 2503.00813): three layers and 48 tokens learn nothing there, so all
  six layers of MiniLM, 96 tokens, a rate for every arm.
* HLoRA where others saw it win (NVFlare's example: 3 clients of ranks 4, 8 and 16, all in every
  round, skewed labels), here on AG News.
* Fed-PLoRA against FLoRA on CoLA (arXiv 2602.16936), by Matthews' correlation.

    python -m experiments.papers.open_claims.run --data-dir DATA     # resumable; hours
    python -m experiments.papers.open_claims.report                  # results/table.md
"""

from experiments.papers import fed_plora, hlora
from experiments.tools.study import Changes, small, variant
from experiments.tools.tuned import Comparison, study_of

SEEDS = tuple(range(8))
ROUNDS = 20
DEEP: Changes = {"model.layers": None, "data.max_length": 96, "data.train_examples": 3500}
"""All layers of the backbone, and room for pairs of sentences. MRPC has 4,076 examples, of which
500 find the rates."""

TUNING: Changes = {
    "data.validation_examples": 500,
    "data.test_examples": 64,
    "federation.rounds": ROUNDS // 2,
}

PAIRS = Comparison(
    "pairs",
    "HLoRA on pairs of sentences",
    variant(small, DEEP),
    ("mrpc", "qqp"),
    hlora.ARMS,
    SEEDS,
    tuning=TUNING,
)

THREE_CLIENTS = Comparison(
    "three_clients",
    "HLoRA with three clients that are in every round",
    variant(
        small,
        {
            "federation.clients": 3,
            "federation.cohort": 3,
            "federation.ranks": "table(ranks=[4, 8, 16])",
            "federation.rounds": 10,
            "local.max_steps": 10,
        },
    ),
    ("ag_news",),
    {
        "naive, mixed ranks": {"federation.method": "zero_padding"},
        "HLoRA, mixed ranks": {"federation.method": "hlora"},
    },
    SEEDS,
    tuning={**TUNING, "federation.rounds": 5},
)

ACCEPTABLE = Comparison(
    "cola",
    "Fed-PLoRA on CoLA",
    variant(small, {"model.layers": None, "data.test_examples": 516}),
    ("cola",),
    {arm: fed_plora.MAIN[arm] for arm in ("FLoRA", "Fed-PLoRA", "FedIT, rank 32 for all")},
    SEEDS,
    metric="matthews",
    tuning=TUNING,
)

COMPARISONS = (PAIRS, THREE_CLIENTS, ACCEPTABLE)
STUDY = study_of("open_claims", COMPARISONS, group="papers")
