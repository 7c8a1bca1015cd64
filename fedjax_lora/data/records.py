"""The records that the modules of this package hand to each other; plain data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Table(NamedTuple):
    """Examples as a source holds them, before labels become numbers; `E` rows.

    Attributes:
      where: the file or hub id, for messages.
      texts: `E` strings.
      labels: `E` class names, class indices (as numbers or digits), or scores.
      rows: the row of each example in the source, counted as a spreadsheet does (from 1).
      pairs: `E` second texts of a pair task.
      groups: `E` names of the natural client of each example.
      classes: class names in order, where the source states them.
      skipped: rows left out for a defect that is known and documented.
    """

    where: str
    texts: list[str]
    labels: list[Any]
    rows: Sequence[int]
    pairs: list[str] | None = None
    groups: list[str] | None = None
    classes: tuple[str, ...] = ()
    skipped: int = 0


class Hub(NamedTuple):
    """A dataset on the Hugging Face hub: its id, configuration, splits and columns."""

    id: str
    config: str | None = None
    train: str = "train"
    test: str = "test"
    columns: tuple[str, ...] = ("text",)
    label: str = "label"
    group: str | None = None


class Local(NamedTuple):
    """A task's files on disk.

    Attributes:
      folder: the folder under the data folder.
      train: file names; the first that is present, as it is or with .gz, is read.
      test: file names, likewise.
      read: the reader of both.
      cut: whether, without a test file, a fifth of `train` becomes the test set.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    read: Callable[[Path], Table]
    cut: bool = False


@dataclass(frozen=True)
class Task:
    """What there is to know about a task.

    Attributes:
      name: the name in `TASKS`.
      summary: one line.
      url: the paper or page.
      classes: class names in label order; empty if the data states them.
      metric: `"accuracy"`, `"f1"`, `"matthews"`, or `"pearson"` (a regression task).
      hub: where it is on the hub.
      local: where its files are on disk.
      builtin: reads (train, test) of a task that needs neither.
    """

    name: str
    summary: str
    url: str
    classes: tuple[str, ...] = ()
    metric: str = "accuracy"
    hub: Hub | None = None
    local: Local | None = None
    builtin: Callable[[], tuple[Table, Table]] | None = None

    @property
    def regression(self) -> bool:
        """Whether labels are scores and not classes."""
        return self.metric == "pearson"


class Split(NamedTuple):
    """Examples of one split.

    Attributes:
      texts: `E` strings.
      pairs: `E` second texts, or None.
      labels: `int32[E]` class indices, or `float32[E]` scores.
      groups: `int32[E]` codes of the natural client, the same codes in all splits; or None.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    groups: np.ndarray | None


class TaskData(NamedTuple):
    """A loaded task.

    Attributes:
      task: what it is.
      classes: class names in label order; empty for a regression task.
      train: training examples.
      validation: examples taken from the training examples, or None.
      test: test examples.
      overlap: how many of `test`'s texts (pairs: both texts) also occur in `train`.
      skipped: rows of the sources left out for a known defect (see `official.read_qqp`).
    """

    task: Task
    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    overlap: int
    skipped: int = 0
