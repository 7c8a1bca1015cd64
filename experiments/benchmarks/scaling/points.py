"""The measured points."""

import dataclasses

from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
)

ALL_8, ALL_64 = "fixed(rank=8)", "fixed(rank=64)"
MEAN_8 = "tiers(ranks=[4, 8, 16, 32, 64], shares=[0.66, 0.21, 0.07, 0.04, 0.02])"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """The rounds of one process."""

    series: str
    label: str  # for readers
    clients: int  # all in every cohort
    ranks: str
    batch: int = 1
    steps: int = 1
    tokens: int = 8
    clients_per_step: int | None = None
    devices: int | None = None  # None: one device without a mesh
    rounds: int = 3
    layers: int | None = None

    @property
    def name(self) -> str:
        """Name of its record."""
        return f"{self.series}-{self.label.split()[0].replace(',', '')}"


def _clients(count: int) -> Point:
    about = {"label": f"{count:,} clients", "clients": count, "rounds": 2 if count > 1000 else 3}
    return Point(series="clients", ranks="fixed(rank=4)", clients_per_step=10, **about)


def _ranks(label: str, ranks: str) -> Point:
    return Point(series="ranks", label=label, clients=100, ranks=ranks, batch=4, tokens=16)


def _devices(count: int) -> Point:
    about = {"label": f"{count} device{'s' * (count > 1)}", "devices": count, "clients": 32}
    return Point(series="devices", ranks=ALL_8, batch=4, tokens=16, **about)


POINTS = (
    *(_clients(count) for count in (10, 100, 1_000, 10_000)),
    _ranks("8 for all", ALL_8),
    _ranks("4-64 with mean 8", MEAN_8),
    _ranks("64 for all", ALL_64),
    *(_devices(count) for count in (1, 2, 4, 8)),
)


def config(point: Point, data_dir: str | None) -> RunConfig:
    """Return a run whose rounds are the point."""
    return RunConfig(
        data=DataConfig(
            task="ag_news" if data_dir else "docstrings",
            data_dir=data_dir,
            train_examples=point.clients * point.batch * point.steps,
            test_examples=1,
            max_length=point.tokens,
        ),
        model=ModelConfig(layers=point.layers),
        federation=FederationConfig(
            method="zero_padding",
            clients=point.clients,
            cohort=point.clients,
            rounds=point.rounds,
            partition="iid",
            min_examples=1,
            ranks=point.ranks,
        ),
        local=LocalConfig(batch=point.batch, max_steps=point.steps, learning_rate=1e-3),
        execution=ExecutionConfig(
            mode="sharded" if point.devices else "vmap",
            clients_per_step=point.clients_per_step,
            devices=point.devices,
            eval_every=point.rounds,
        ),
    )
