"""Records of tasks and their examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fedjax_lora.data.prompts import DATE
from fedjax_lora.data.turns import Turn

if TYPE_CHECKING:
    from datasets import Dataset

TaskType = Literal["classification", "regression", "language"]

Value = str | int | float
"""A field of a table."""

METRICS: dict[str, TaskType] = {
    "accuracy": "classification",
    "f1": "classification",
    "macro_f1": "classification",
    "micro_f1": "classification",
    "matthews": "classification",
    "pearson": "regression",
    "spearman": "regression",
    "perplexity": "language",
    "rouge_l": "language",
    "exact_match": "language",
    "choice_accuracy": "language",
}
"""The task type of each metric; it determines the loss and the evaluation."""


class Table(NamedTuple):
    """Examples as read from a source, before labels become numbers; `E` rows.

    Attributes:
      where: the file or hub id, for messages.
      texts: `E` strings; the instructions of a language task.
      labels: `E` class names, class indices (as numbers or digits), or scores; the categories of a
        language task.
      rows: the row of each example in the source, counted from 1 as in a spreadsheet.
      pairs: `E` second texts of a pair task; the completions of a language task.
      groups: `E` names of natural clients.
      classes: class names in label order, if the source states them.
      skipped: number of rows left out for a documented defect.
      contexts: `E` texts that instructions are about, may be empty; language tasks only.
      choices: `E` tuples of completions, of which the example's completion is the right one.
      sources: the file of each row, if there are several.
      turns: `E` conversations; then `texts` is what stands before their last answer, in `pairs`.
      notes: sentences about what was left out.
    """

    where: str
    texts: list[str]
    labels: Sequence[Value]
    rows: Sequence[int]
    pairs: list[str] | None = None
    groups: list[str] | None = None
    classes: tuple[str, ...] = ()
    skipped: int = 0
    contexts: list[str] | None = None
    choices: list[tuple[str, ...]] | None = None
    sources: Sequence[str] | None = None
    turns: list[tuple[Turn, ...]] | None = None
    notes: tuple[str, ...] = ()

    def place(self, example: int) -> str:
        """Return where an example is: its file and row."""
        source = self.where if self.sources is None else self.sources[example]
        return f"{source} row {self.rows[example]}"


class Hub(NamedTuple):
    """A dataset on the Hugging Face hub.

    Attributes:
      id: its repository.
      config: its configuration, if it has several.
      train: the training split.
      test: the test split; without one a fifth of ``train`` becomes the test set.
      columns: the text column, or the columns of both texts of a pair.
      label: the label column.
      group: the column of natural clients.
      read: ``(where, rows) -> Table``, reads a split instead of the named columns.
      own: whether it is the user's; then ``test`` may be None, and stands for the split of that
        name if there is one.
    """

    id: str
    config: str | None = None
    train: str = "train"
    test: str | None = "test"
    columns: tuple[str, ...] = ("text",)
    label: str = "label"
    group: str | None = None
    read: Callable[[str, "Dataset"], Table] | None = None
    own: bool = False


class Local(NamedTuple):
    """A task's files on disk.

    Attributes:
      folder: the folder under the data folder.
      train: file names, of which the first that exists (also with .gz) is read.
      test: file names, likewise.
      read: reads a file of either.
      cut: whether a fifth of `train` becomes the test set if there is no test file.
    """

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    read: Callable[[Path], Table]
    cut: bool = False


class Files(NamedTuple):
    """A user's own files, which are read together.

    Attributes:
      train: file names or patterns with ``*``, relative to the data folder.
      test: likewise; without any, a fifth of the training examples becomes the test set.
      read: reads a file.
      are_clients: whether each file is a natural client, named after it.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    read: Callable[[Path], Table]
    are_clients: bool = False


class Folder(NamedTuple):
    """A task whose files on disk are read together.

    Attributes:
      folder: the folder under the data folder.
      read: ``(folder) -> (train, test)``; if test is None, a fifth of train becomes the test set.
    """

    folder: str
    read: Callable[[Path], tuple[Table, Table | None]]


class Prompting(NamedTuple):
    """Prompting options of a language task's spec.

    Attributes:
      format: a name in `fedjax_lora.data.prompts.FORMATS`, or ``"auto"``: the tokenizer's chat
        template if it has one, else Alpaca's format.
      answer_tokens: largest number of tokens generated for an answer.
      test: name of another language task whose test set is used.
      clients: ``own``: the data's natural clients; ``category``: its categories as clients.
      date: date that a chat template prints, ``YYYY-MM-DD``; that of the config.
    """

    format: str = "auto"
    answer_tokens: int = 128
    test: str | None = None
    clients: Literal["own", "category"] = "own"
    date: str = DATE


@dataclass(frozen=True)
class Task:
    """A task: its description, metric and sources.

    Attributes:
      name: the name in `TASKS`.
      summary: one line.
      url: the paper or page.
      classes: class names in label order; empty if the data states them.
      metric: a name in `METRICS`.
      hub: its dataset on the hub.
      local: its files on disk.
      builtin: reads (train, test) of a task that needs neither hub nor files.
      prompting: prompting options of a language task.
    """

    name: str
    summary: str
    url: str
    classes: tuple[str, ...] = ()
    metric: str = "accuracy"
    hub: Hub | None = None
    local: Local | Files | Folder | None = None
    builtin: Callable[[], tuple[Table, Table]] | None = None
    prompting: Prompting = field(default_factory=Prompting)

    @property
    def type(self) -> TaskType:
        """The task type, by the metric: a class, a score or the next token is predicted."""
        return METRICS[self.metric]

    @property
    def lower_is_better(self) -> bool:
        """Whether lower values of the metric are better."""
        return self.metric == "perplexity"


class Split(NamedTuple):
    """Examples of one split.

    Attributes:
      texts: `E` strings; the instructions of a language task.
      pairs: `E` second texts, or None; the completions of a language task.
      labels: `int32[E]` class indices, or `float32[E]` scores; a language task's categories.
      groups: `int32[E]` codes of the natural clients, the same in all splits; or None.
      contexts: `E` texts that instructions are about, may be empty; None except for language tasks.
      choices: `E` tuples of completions, of which that in `pairs` is the right one; or None.
      turns: `E` conversations, or None; their last answers are in `pairs`.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    groups: np.ndarray | None
    contexts: list[str] | None = None
    choices: list[tuple[str, ...]] | None = None
    turns: list[tuple[Turn, ...]] | None = None

    def take(self, index: np.ndarray) -> "Split":
        """Select the examples with indices ``int[E']``, in that order."""

        def part(column: Any) -> Any:
            if column is None:
                return None
            return column[index] if isinstance(column, np.ndarray) else [column[i] for i in index]

        return Split(*map(part, self))


class TaskData(NamedTuple):
    """A loaded task.

    Attributes:
      task: the task.
      classes: class names in label order; empty for a regression task, and the names of the
        categories for a language task.
      train: training examples.
      validation: examples taken from the training examples, or None.
      test: test examples.
      overlap: number of test texts (pairs: of both texts together) that also occur in `train`.
      skipped: number of rows left out for a documented defect (see
        `fedjax_lora.data.datasets.official_formats.read_qqp`), and of examples of language tasks
        that cannot be learned from (see `fedjax_lora.data.instruction_tokens.encode`).
      groups: names of the natural clients, in the order of their codes.
      notes: sentences about labels that are probably not as they were meant, and about what was
        left out of the examples.
    """

    task: Task
    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    overlap: int
    skipped: int = 0
    groups: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
