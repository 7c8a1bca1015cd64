"""Noise and cost of a round with every method, measured on AG News with MiniLM.

Setting: that of `experiments.studies.ag_news` (ranks 4/8/16/32 in equal shares, rank 32 for
all clients where a method needs one rank; 100 clients, Dirichlet 0.5, cohorts of 10), 5 rounds of
at most 2 local steps at learning rate 0.006, every round measured. Initialization noise is the
distance between the global model and a client's initial model; aggregation noise is the distance
between the new global model and the example-weighted mean of the clients' models; both relative to
the ideal update of the round.

Dilution (Byun & Lee): one round with one client of rank 8 among `K`, the others of rank 2. The size
of the product of the components that only this client has, under zero padding relative to
replication padding. Their law predicts ``1 / K**2``.

    python -m experiments.studies.noise.run --data-dir DATA  # resumable
    python -m experiments.studies.noise.report                     # table and figure from the files
"""

import dataclasses
import pathlib

from experiments.studies import ag_news
from fedjax_lora import methods
from fedjax_lora.runs.config import RunConfig

RESULTS = pathlib.Path(__file__).parent / "results"
RUNS = RESULTS / "runs.jsonl"
FORMER = {
    "fedrora": "fedrora(largest='signed', first=0.0)",
    "fslora": "fslora(indices='global')",
    "lora_fair": "lora_fair(penalty=0.01, relative=False)",
}
"""Measured with the defaults of version 0.2."""
LATER = {
    "fedhl", "fedmomentum", "eclora", "fedsvd", "fedrot_lora", "frlora", "ravan", "fed_sb",
}  # fmt: skip
"""Methods that are younger than the measurements."""
METHODS = tuple(FORMER.get(name, name) for name in methods.METHODS if name not in LATER)
COHORTS = (2, 4, 8)


def get_config(method: str, *, data_dir: str) -> RunConfig:
    """Return the config of a measured run."""
    config = ag_news.get_config(method, rate=0.006, seed=0, data_dir=data_dir, rounds=5)
    ranks = config.federation.ranks if methods.takes_mixed_ranks(method) else "fixed(rank=32)"
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, validation_examples=0, test_examples=200),
        federation=dataclasses.replace(config.federation, ranks=ranks),
        local=dataclasses.replace(config.local, max_steps=2, schedule="constant"),
        execution=dataclasses.replace(config.execution, measure=True),
    )


def dilution_config(method: str, *, clients: int, data_dir: str) -> RunConfig:
    """Return a run of one round in which one of equally large clients has a high rank."""
    config = get_config(method, data_dir=data_dir)
    ranks = f"table(ranks={[8] + [2] * (clients - 1)})"
    return dataclasses.replace(
        config,
        federation=dataclasses.replace(
            config.federation,
            ranks=ranks,
            clients=clients,
            cohort=clients,
            rounds=1,
            partition="iid",
        ),
        execution=dataclasses.replace(config.execution, measure=False),
    )
