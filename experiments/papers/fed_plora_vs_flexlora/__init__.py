"""Is Fed-PLoRA far above FlexLoRA, as its paper says, or level with it, as FedRoRA's tables say?

The study also compares rules to merge components that not all clients have. All methods have the
same seeds, ranks, scale and tuning budget; the README in this folder has protocol and outcome.

    python -m experiments.tools.small --data-dir DATA --only fed_plora_vs_flexlora
    python -m experiments.papers.fed_plora_vs_flexlora.report
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from experiments.tools.study import Changes, Part, Records, Size, Study, small, variant
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
)
from fedjax_lora.runs.figure_style import method_label

KEPT, ZEROED = (method_label(f"zero_padding(empty={x!r})") for x in ("keep", "zero"))
"""Zero padding in both readings of components that nobody in a cohort owns; see its page."""

METHODS = {
    "Fed-PLoRA": "fed_plora",
    "FlexLoRA": "flexlora",
    "replication": "replication(donors='highest')",
    "masked mean": "masked_mean",
    "HLoRA": "hlora",
    "raFLoRA": "raflora",
    KEPT: "zero_padding",
    ZEROED: "zero_padding(empty='zero')",
}
"""With all clients as donors replication equals the masked mean; so the highest rank donates."""

PAIR = ("Fed-PLoRA", "FlexLoRA")
DEEPER = "all_layers"  # the part that repeats the pair on them
CONTROL, BY_EXAMPLES = "by_examples", "Fed-PLoRA by examples"
"""Fed-PLoRA weighs clients equally, FlexLoRA by examples; in these parts both weigh by examples."""
TUNING_SEEDS, SEEDS = (100,), (0, 1, 2, 3, 4)
TASKS: Mapping[Size, tuple[str, ...]] = {
    "small": ("ag_news", "sst2"),
    "full": ("qnli", "sst2", "qqp", "mnli"),
}
RATES: Mapping[Size, tuple[float, ...]] = {
    "small": (3e-3, 8e-3, 2e-2, 5e-2),
    "full": (2e-4, 5e-4, 1.2e-3),
}
RANKS: Mapping[Size, str] = {"small": "[4, 8, 16, 32]", "full": "[8, 16, 32, 64]"}
DEEP: Changes = {"model.layers": None}
MIXES = {"uniform": "'uniform'", "heavy_tail": "'heavy_tail'"}


def full_base(task: str) -> RunConfig:
    """Base config near FedRoRA's tables (arXiv 2609.00632), the only ones with both methods."""
    return RunConfig(
        data=DataConfig(task=task, train_examples=20_000, max_length=128),
        model=ModelConfig(model="roberta-large", dtype="bfloat16", dropout=None),
        lora=LoraConfig(targets="attention-qv", lora_dropout=0.05),
        federation=FederationConfig(
            clients=20, cohort=20, rounds=40, partition="dirichlet(alpha=0.5)", heads="frozen"
        ),
        local=LocalConfig(learning_rate=5e-4, batch=128, epochs=2),
        execution=ExecutionConfig(eval_every=4),
    )


def base_of(size: Size, mix: str) -> Callable[[str], RunConfig]:
    """Return the base config of a size with a mix of ranks."""
    ranks = f"tiers(ranks={RANKS[size]}, shares={MIXES[mix]})"
    return variant(small if size == "small" else full_base, {"federation.ranks": ranks})


def tuning(size: Size, records: Records) -> list[Part]:
    """Tuning: all methods with all rates, whole runs, judged on validation examples.

    The pair is tuned again on all layers, where the rates found on three may be too high.
    """
    base = variant(
        base_of(size, "uniform"),
        {"data.validation_examples": 500, "data.test_examples": 64, "execution.eval_every": 100},
    )
    parts = [_tuning("tuning", "learning rates", base, TASKS[size], METHODS, RATES[size])]
    if size == "small":
        deep = variant(base, DEEP)
        title = "learning rates, all of MiniLM"
        parts.append(_tuning(f"tuning_{DEEPER}", title, deep, TASKS[size][:1], PAIR, RATES[size]))
    return parts


def _tuning(
    name: str,
    title: str,
    base: Callable[[str], RunConfig],
    tasks: tuple[str, ...],
    methods: Iterable[str],
    rates: tuple[float, ...],
) -> Part:
    arms = {
        tuned(method, rate): {"federation.method": METHODS[method], "local.learning_rate": rate}
        for method in methods
        for rate in rates
    }
    return Part(name, title, base, tasks, arms, TUNING_SEEDS, shown=False)


def tuned(method: str, rate: float) -> str:
    """Name of the tuning arm."""
    return f"{method}, rate {rate:g}"


def best_rate(size: Size, records: Records, method: str, task: str, name: str = "tuning") -> float:
    """Select the rate with the highest mean validation accuracy; the smaller one in a tie.

    Until the tuning part ``name`` is finished, the smallest rate is returned.
    """
    (part,) = (part for part in tuning(size, records) if part.name == name)

    def score(rate: float) -> float:
        configs = [part.config(tuned(method, rate), task, seed) for seed in part.seeds]
        found = [records[c]["history"][-1]["validation_accuracy"] for c in configs if c in records]
        return float(np.mean(found)) if len(found) == len(configs) else -np.inf

    return max(RATES[size], key=lambda rate: (score(rate), -rate))


def reporting(size: Size, records: Records) -> list[Part]:
    """All methods with their tuned rates, on every task and mix of ranks."""
    return [
        Part(
            f"{task}_{mix}",
            f"{task}, {mix} mix of ranks",
            base_of(size, mix),
            (task,),
            arms(size, records, task, METHODS),
            SEEDS,
        )
        for mix in MIXES
        for task in TASKS[size]
    ]


def arms(
    size: Size, records: Records, task: str, methods: Iterable[str], name: str = "tuning"
) -> dict[str, Changes]:
    """Arms of methods with their tuned rates."""
    return {
        method: {
            "federation.method": METHODS[method],
            "local.learning_rate": best_rate(size, records, method, task, name),
        }
        for method in methods
    }


def controls(size: Size, records: Records) -> list[Part]:
    """The pair with equal weighting of clients, at the tuned rates."""
    made = []
    for task in TASKS[size]:
        plora, other = arms(size, records, task, PAIR).items()
        weighted = plora[1] | {"federation.method": "fed_plora(weights='examples')"}
        title = f"{task}, uniform mix of ranks, clients weighted by examples"
        pair = {BY_EXAMPLES: weighted, other[0]: other[1]}
        made.append(
            Part(f"{task}_{CONTROL}", title, base_of(size, "uniform"), (task,), pair, SEEDS)
        )
    return made


def deeper(size: Size, records: Records) -> list[Part]:
    """The pair on all six layers of MiniLM."""
    if size == "full":
        return []
    base, task = variant(base_of(size, "uniform"), DEEP), TASKS[size][0]
    pair = arms(size, records, task, PAIR, f"tuning_{DEEPER}")
    return [Part(DEEPER, f"{task}, uniform mix of ranks", base, (task,), pair, SEEDS)]


STUDY = Study(
    "fed_plora_vs_flexlora",
    (
        tuning,
        lambda size, records: [
            part for of in (reporting, deeper, controls) for part in of(size, records)
        ],
    ),
)
