"""Reruns of papers as data: parts of runs, in stages, at two sizes, and where their results are."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from fedjax_lora.runs.build import Assets
from fedjax_lora.runs.compilation import CompiledFunctions
from fedjax_lora.runs.config import (
    DataConfig,
    ExecutionConfig,
    FederationConfig,
    LocalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
)
from fedjax_lora.runs.sweep import record_store
from fedjax_lora.runs.sweep.grid import Cell, changed
from fedjax_lora.runs.sweep.record_store import Record

ROOT = pathlib.Path(__file__).parents[1] / "papers"

Size = Literal["small", "full"]
"""``small`` runs on two CPU cores; ``full`` is the paper's model and data, for accelerators."""

SIZES: tuple[Size, ...] = ("small", "full")

Records = Mapping[RunConfig, Record]
"""Finished runs."""

Changes = dict[str, Any]
"""Values by dotted field of the config, as `fedjax_lora.runs.sweep.grid.changed` takes them."""

Work = Callable[[RunConfig, Assets, CompiledFunctions], Any]
"""Does what a run is replaced by; returns what has ``history`` and ``summary``."""


class Part(NamedTuple):
    """A figure or table: every arm on every task with every seed."""

    name: str
    title: str
    base: Callable[[str], RunConfig]  # by task, what the arms share
    tasks: tuple[str, ...]
    arms: Mapping[str, Changes]
    seeds: tuple[int, ...]
    shown: bool = True  # whether reports have a table of its test accuracies

    def config(self, arm: str, task: str, seed: int) -> RunConfig:
        """One run."""
        return changed(self.base(task), {**self.arms[arm], "seed": seed})

    def backbone(self) -> str:
        """The model of its runs, and how much text it sees."""
        of = self.base(self.tasks[0])
        layers = "all layers" if of.model.layers is None else f"the first {of.model.layers} layers"
        return f"{layers} of {of.model.model}, {of.data.max_length} tokens"

    def cells(self) -> list[Cell]:
        """All runs, seed by seed, so that what is finished early compares the arms."""
        return [
            Cell(
                {"method": arm, "part": self.name, "task": task, "seed": seed},
                self.config(arm, task, seed),
            )
            for seed in self.seeds
            for task in self.tasks
            for arm in self.arms
        ]


Stage = Callable[[Size, Records], list[Part]]
"""Parts that may depend on the runs of the stages before; without them it still counts right."""


class Study(NamedTuple):
    """A paper's rerun.

    Attributes:
      name: of its folder.
      stages: run one after another.
      works: by part, what is done in place of a run.
    """

    name: str
    stages: tuple[Stage, ...]
    works: Mapping[str, Work] = {}

    def folder(self, size: Size) -> pathlib.Path:
        """Where results are: ``runs/`` has a file per finished run."""
        return ROOT / self.name / "results" / size

    def records(self, size: Size) -> Records:
        """The finished runs."""
        return record_store.finished(self.folder(size) / "runs")

    def parts(self, size: Size, records: Records) -> list[Part]:
        """The parts of all stages."""
        return [part for stage in self.stages for part in stage(size, records)]


class Results(NamedTuple):
    """The parts of a study at one size, and its finished runs."""

    parts: Mapping[str, Part]
    records: Records
    size: Size
    folder: pathlib.Path

    def runs(self, part: str, arm: str, task: str) -> dict[int, Record]:
        """The finished runs of an arm on a task, by seed."""
        chosen = self.parts[part]
        configs = {seed: chosen.config(arm, task, seed) for seed in chosen.seeds}
        return {seed: self.records[c] for seed, c in configs.items() if c in self.records}


def is_run(record: Record) -> bool:
    """Whether it is a run with test accuracies, and not something done in place of one."""
    return "accuracy" in record["history"][-1]


def distinct(parts: Iterable[Part]) -> list[Cell]:
    """All runs of some parts, those that two of them share once."""
    cells = {cell.config: cell for part in parts for cell in part.cells()}
    return list(cells.values())


def results(study: Study, size: Size) -> Results:
    """What a study has come to."""
    records = study.records(size)
    parts = {part.name: part for part in study.parts(size, records)}
    return Results(parts, records, size, study.folder(size))


FEWER: Mapping[str, tuple[int, int]] = {"rte": (2400, 277)}
"""Training and test examples of the tasks that have fewer than `small` takes."""


def small(task: str) -> RunConfig:
    """What the small runs of all studies share: three layers of MiniLM and little text.

    100 clients, 10 a round, 20 rounds of at most three steps; 4,000 training and 800 test examples
    of at most 48 tokens, drawn from the seed. The learning rate falls linearly to a tenth.
    """
    train, test = FEWER.get(task, (4000, 800))
    return RunConfig(
        data=DataConfig(task=task, train_examples=train, test_examples=test, max_length=48),
        model=ModelConfig(layers=3, pooling="mean"),
        lora=LoraConfig(targets="attention-qv"),
        federation=FederationConfig(
            clients=100, cohort=10, rounds=20, partition="dirichlet(alpha=0.5)"
        ),
        local=LocalConfig(
            learning_rate=8e-3, schedule="linear(end=0.1)", batch=16, epochs=2, max_steps=3
        ),
        execution=ExecutionConfig(eval_every=4),
    )


def full(task: str) -> RunConfig:
    """What the full runs of the papers on encoders share; a study exchanges the model and more.

    100 clients, 10 a round, 100 rounds of one epoch; all examples, of at most 128 tokens.
    """
    return RunConfig(
        data=DataConfig(task=task, max_length=128),
        model=ModelConfig(dropout=None),
        lora=LoraConfig(targets="attention-qv"),
        federation=FederationConfig(
            clients=100, cohort=10, rounds=100, partition="dirichlet(alpha=0.5)"
        ),
        local=LocalConfig(learning_rate=1e-3, schedule="linear(end=0.1)", batch=16, epochs=1),
        execution=ExecutionConfig(eval_every=4),
    )


def variant(base: Callable[[str], RunConfig], changes: Changes) -> Callable[[str], RunConfig]:
    """The base with the same changes for every task."""
    return lambda task: changed(base(task), changes)
