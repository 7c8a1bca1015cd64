"""Studies as data: runs grouped in parts and stages, at two sizes, and their result files."""

import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from experiments.tools import run_store
from experiments.tools.json_lines import Record
from experiments.tools.run_store import Records
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
from fedjax_lora.runs.sweep.grid import Cell, changed

ROOT = pathlib.Path(__file__).parents[1]
"""The folder ``experiments``."""

RUNS = "runs.jsonl"

Size = Literal["small", "full"]
"""``small`` takes hours on two CPU cores; ``full`` has the paper's model and data and needs an
accelerator."""

SIZES: tuple[Size, ...] = ("small", "full")

Changes = dict[str, Any]
"""New values by dotted config field, the input of `fedjax_lora.runs.sweep.grid.changed`."""

Experiment = Callable[[RunConfig, Assets, CompiledFunctions], run_store.RunResult]
"""Replaces the training run of a part."""


class Part(NamedTuple):
    """A figure or table: all arms on all tasks with all seeds.

    Attributes:
      name: identifier; also the file name of its figure.
      title: description for readers.
      base: config shared by the arms, by task.
      tasks: names of tasks.
      arms: config changes by arm.
      seeds: seeds of every arm.
      shown: whether reports have a table and a figure of its test accuracies.
    """

    name: str
    title: str
    base: Callable[[str], RunConfig]
    tasks: tuple[str, ...]
    arms: Mapping[str, Changes]
    seeds: tuple[int, ...]
    shown: bool = True

    def config(self, arm: str, task: str, seed: int) -> RunConfig:
        """Return the config of one run."""
        return _changed(self.base(task), json.dumps({**self.arms[arm], "seed": seed}))

    def backbone(self) -> str:
        """Describe the model and its maximum text length."""
        of = self.base(self.tasks[0])
        layers = "all layers" if of.model.layers is None else f"the first {of.model.layers} layers"
        return f"{layers} of {of.model.model}, {of.data.max_length} tokens"

    def cells(self) -> list[Cell]:
        """All runs, ordered by seed, so that an interrupted part still compares the arms."""
        return [
            Cell(
                {"method": arm, "part": self.name, "task": task, "seed": seed},
                self.config(arm, task, seed),
            )
            for seed in self.seeds
            for task in self.tasks
            for arm in self.arms
        ]


@functools.cache
def _changed(base: RunConfig, changes: str) -> RunConfig:
    """Return a base with changes, given as JSON. A report asks for the config of a run often."""
    return changed(base, json.loads(changes))


Stage = Callable[[Size, Records], list[Part]]
"""Returns parts that may depend on the finished runs of earlier stages.

Without those runs the number of cells is already right.
"""


class Study(NamedTuple):
    """A set of runs that answers one question.

    Attributes:
      name: name of its folder.
      stages: run in order.
      replacements: by part, what is executed instead of a training run.
      group: parent folder of the study's folder in ``experiments``.
    """

    name: str
    stages: tuple[Stage, ...]
    replacements: Mapping[str, Experiment] = {}
    group: str = "papers"

    def home(self) -> pathlib.Path:
        """The folder of the study."""
        return ROOT / self.group / self.name

    def folder(self, size: Size) -> pathlib.Path:
        """The folder of the results of one size."""
        return self.home() / "results" / size

    def runs_file(self, size: Size) -> pathlib.Path:
        """The file of the finished runs of one size."""
        return self.folder(size) / RUNS

    def records(self, size: Size) -> Records:
        """Read the finished runs of one size."""
        return run_store.finished(self.runs_file(size))

    def parts(self, size: Size, records: Records) -> list[Part]:
        """The parts of all stages."""
        return [part for stage in self.stages for part in stage(size, records)]


class Results(NamedTuple):
    """The parts of a study at one size and its finished runs."""

    parts: Mapping[str, Part]
    records: Records
    size: Size
    folder: pathlib.Path

    def runs(self, part: str, arm: str, task: str) -> dict[int, Record]:
        """The finished runs of an arm on a task, by seed."""
        chosen = self.parts[part]
        configs = {seed: chosen.config(arm, task, seed) for seed in chosen.seeds}
        return {seed: self.records[c] for seed, c in configs.items() if c in self.records}


def is_training_run(record: Record) -> bool:
    """Whether a record has test accuracies, i.e. does not belong to a replaced run."""
    return "accuracy" in record["history"][-1]


def distinct(parts: Iterable[Part]) -> list[Cell]:
    """All runs of the parts; runs that parts share are included once."""
    cells = {cell.config: cell for part in parts for cell in part.cells()}
    return list(cells.values())


def results(study: Study, size: Size) -> Results:
    """Read the results of a study at one size."""
    records = study.records(size)
    parts = {part.name: part for part in study.parts(size, records)}
    return Results(parts, records, size, study.folder(size))


FEWER: Mapping[str, tuple[int, int]] = {"rte": (2400, 277)}
"""Numbers of training and test examples of tasks that are smaller than `small` needs."""


@functools.cache
def small(task: str) -> RunConfig:
    """Base config of the small runs of all studies.

    Three layers of MiniLM; 100 clients, cohorts of 10, 20 rounds of at most 3 local steps; 4,000
    training and 800 test examples of at most 48 tokens, drawn by the seed. The learning rate decays
    linearly to a tenth.
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


@functools.cache
def full(task: str) -> RunConfig:
    """Base config of the full runs on encoders; each study changes at least the model.

    100 clients, cohorts of 10, 100 rounds of one local epoch; all examples, of at most 128 tokens.
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
    """Return a base with the same changes for every task."""
    return functools.cache(lambda task: changed(base(task), changes))
