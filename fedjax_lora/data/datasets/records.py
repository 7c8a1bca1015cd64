"""The records that the modules of this package hand to each other; plain data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

TaskType = Literal["classification", "regression", "language"]

METRICS: dict[str, TaskType] = {
    "accuracy": "classification",
    "f1": "classification",
    "matthews": "classification",
    "pearson": "regression",
    "perplexity": "language",
    "rouge_l": "language",
    "exact_match": "language",
    "choice_accuracy": "language",
}
"""A task's metric says what kind of task it is: what is minimised and how it is evaluated."""


class Table(NamedTuple):
    """Examples as a source holds them, before labels become numbers; `E` rows.

    Attributes:
      where: the file or hub id, for messages.
      texts: `E` strings; the instructions of a language task.
      labels: `E` class names, class indices (as numbers or digits), or scores; the categories of a
        language task.
      rows: the row of each example in the source, counted as a spreadsheet does (from 1).
      pairs: `E` second texts of a pair task; the completions of a language task.
      groups: `E` names of the natural client of each example.
      classes: class names in order, where the source states them.
      skipped: rows left out for a defect that is known and documented.
      contexts: `E` texts that instructions are about, or empty; of language tasks only.
      choices: `E` tuples of completions of which the example's own is the right one.
    """

    where: str
    texts: list[str]
    labels: list[Any]
    rows: Sequence[int]
    pairs: list[str] | None = None
    groups: list[str] | None = None
    classes: tuple[str, ...] = ()
    skipped: int = 0
    contexts: list[str] | None = None
    choices: list[tuple[str, ...]] | None = None


class Hub(NamedTuple):
    """A dataset on the Hugging Face hub: its id, configuration, splits and columns.

    Without a test split a fifth of ``train`` becomes the test set. ``read``, if given, makes a
    table of a split's rows, ``(where, rows) -> Table``, and the columns are its own business.
    """

    id: str
    config: str | None = None
    train: str = "train"
    test: str | None = "test"
    columns: tuple[str, ...] = ("text",)
    label: str = "label"
    group: str | None = None
    read: Callable[[str, Any], Table] | None = None


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


class Folder(NamedTuple):
    """A task whose files on disk are read together.

    Attributes:
      folder: the folder under the data folder.
      read: ``(folder) -> (train, test)``; where test is None, a fifth of train becomes it.
    """

    folder: str
    read: Callable[[Path], tuple[Table, Table | None]]


class Prompting(NamedTuple):
    """How a language task is put to the model; the options of its spec.

    Attributes:
      format: a name of `fedjax_lora.data.prompts.FORMATS`, or ``"auto"``: the tokenizer's chat
        template if it has one, else Alpaca's format.
      answer_tokens: the most tokens that are generated for an answer.
      test: another language task whose test set is used.
      clients: whether the natural clients are the data's own or its categories.
    """

    format: str = "auto"
    answer_tokens: int = 128
    test: str | None = None
    clients: Literal["own", "category"] = "own"


@dataclass(frozen=True)
class Task:
    """What there is to know about a task.

    Attributes:
      name: the name in `TASKS`.
      summary: one line.
      url: the paper or page.
      classes: class names in label order; empty if the data states them.
      metric: a name of `METRICS`.
      hub: where it is on the hub.
      local: where its files are on disk.
      builtin: reads (train, test) of a task that needs neither.
      prompting: of a language task.
    """

    name: str
    summary: str
    url: str
    classes: tuple[str, ...] = ()
    metric: str = "accuracy"
    hub: Hub | None = None
    local: Local | Folder | None = None
    builtin: Callable[[], tuple[Table, Table]] | None = None
    prompting: Prompting = field(default_factory=Prompting)

    @property
    def type(self) -> TaskType:
        """What is predicted: a class, a score, or the next token."""
        return METRICS[self.metric]

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is an error."""
        return self.metric == "perplexity"


class Split(NamedTuple):
    """Examples of one split.

    Attributes:
      texts: `E` strings; the instructions of a language task.
      pairs: `E` second texts, or None; the completions of a language task.
      labels: `int32[E]` class indices, or `float32[E]` scores; a language task's categories.
      groups: `int32[E]` codes of the natural client, the same codes in all splits; or None.
      contexts: `E` texts that instructions are about, or empty; None but for language tasks.
      choices: `E` tuples of completions of which `pairs` holds the right one, or None.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    groups: np.ndarray | None
    contexts: list[str] | None = None
    choices: list[tuple[str, ...]] | None = None

    def take(self, index: np.ndarray) -> "Split":
        """The examples at ``int[E']`` places, in that order."""

        def part(column: Any) -> Any:
            if column is None:
                return None
            return column[index] if isinstance(column, np.ndarray) else [column[i] for i in index]

        return Split(*map(part, self))


class TaskData(NamedTuple):
    """A loaded task.

    Attributes:
      task: what it is.
      classes: class names in label order; empty for a regression task, and the names of the
        categories for a language task.
      train: training examples.
      validation: examples taken from the training examples, or None.
      test: test examples.
      overlap: how many of `test`'s texts (pairs: both texts) also occur in `train`.
      skipped: rows of the sources left out for a known defect (see `official.read_qqp`), and
        examples of language tasks that cannot be learned from (see `completions.encode`).
      groups: names of the natural clients, in the order of their codes.
    """

    task: Task
    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    overlap: int
    skipped: int = 0
    groups: tuple[str, ...] = ()
