"""A task's examples: from the hub, from files or built in, cut to size, labels as numbers.

Nothing is dropped silently: rows skipped for a known defect are counted in `TaskData.skipped`, and
test texts that also occur in the training set stay, are counted in `TaskData.overlap`, and are
for the caller to report (AG News has such texts by nature).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.data.datasets.records import Split, Table, Task, TaskData
from fedjax_lora.data.datasets.registry import TASKS, find_task
from fedjax_lora.data.datasets.sources import read_task, read_test


def load(
    spec: str,
    *,
    data_dir: str | None = None,
    train_examples: int | None = None,
    validation_examples: int = 0,
    test_examples: int | None = None,
    seed: int = 0,
) -> TaskData:
    """Load the task that `spec` names.

    Subsets are drawn without replacement, depend on `seed` alone and keep the source's order; the
    validation set is drawn from the training examples and disjoint from `train`.

    Args:
      spec: a name in `TASKS`, or `"file(train='a.csv', ...)"`.
      data_dir: a folder of task folders; without it a task comes from the Hugging Face hub.
      train_examples: size of the training set; all by default.
      validation_examples: size of the validation set.
      test_examples: size of the test set; all by default.
      seed: chooses the subsets.

    Raises:
      InputError: unknown task, absent or broken data, or more examples asked for than exist.
    """
    task = find_task(spec)
    _check_sizes(train_examples, validation_examples, test_examples)
    train_table, test_table = _tables(task, data_dir)
    stated = task.classes or train_table.classes
    classes = () if task.type == "regression" else stated or _ordered(map(str, train_table.labels))
    if task.type == "language":  # a category only names an example; the test set may have others
        classes = _names(train_table.labels, test_table.labels)
    groups = _group_names(train_table, test_table)
    index = {name: i for i, name in enumerate(classes)}
    if stated:  # then a source may also give a class by its number
        index = {str(i): i for i in range(len(classes))} | index
    codes = {name: code for code, name in enumerate(groups)}
    whole, tests = (_split(table, index, codes) for table in (train_table, test_table))

    _check_available(task, len(whole.texts), train_examples, validation_examples, "training")
    _check_available(task, len(tests.texts), test_examples, 0, "test")
    order = np.random.default_rng([seed, 0]).permutation(len(whole.texts))
    rest = order[validation_examples:]
    train = whole.take(np.sort(rest if train_examples is None else rest[:train_examples]))
    validation = whole.take(np.sort(order[:validation_examples])) if validation_examples else None
    order = np.random.default_rng([seed, 1]).permutation(len(tests.texts))
    test = tests.take(np.sort(order[:test_examples]))
    skipped = train_table.skipped + test_table.skipped
    overlap = count_overlap(train, test)
    return TaskData(task, classes, train, validation, test, overlap, skipped, groups)


def _tables(task: Task, data_dir: str | None) -> tuple[Table, Table]:
    """Read (train, test) as the task's options say."""
    chosen = task.prompting
    if chosen.test is None:
        tables = read_task(task, data_dir)
    else:
        tables = (read_task(task, data_dir)[0], read_test(TASKS[chosen.test], data_dir))
    if chosen.clients == "category":
        tables = tuple(table._replace(groups=[*map(str, table.labels)]) for table in tables)
    train, test = tables
    return train, test


def count_overlap(train: Split, test: Split) -> int:
    """Count the examples of `test` whose text (pairs: both texts) also occurs in `train`.

    Of a language task it is the instruction with its context that counts, whatever the completion.

    Texts that differ only in case and white space count as the same.
    """
    seen = set(_keys(train))
    return sum(key in seen for key in _keys(test))


def _keys(split: Split) -> list[Any]:
    second = split.pairs if split.contexts is None else split.contexts
    texts, pairs = (
        [" ".join(text.casefold().split()) for text in column or ()]
        for column in (split.texts, second)
    )
    return texts if second is None else list(zip(texts, pairs, strict=True))


def _check_sizes(train: int | None, validation: int, test: int | None) -> None:
    raise_all(
        "Sizes of the data",
        [f"train_examples is {train}, must be at least 1"] * (train is not None and train < 1)
        + [f"validation_examples is {validation}, must not be negative"] * (validation < 0)
        + [f"test_examples is {test}, must be at least 1"] * (test is not None and test < 1),
    )


def _check_available(
    task: Task, there: int, wanted: int | None, validation: int, kind: str
) -> None:
    if there == 0:
        raise InputError(f"Task {task.name!r} has no {kind} examples at all; check its files.")
    needed = (1 if wanted is None else wanted) + validation
    if needed > there:
        also = f" and {validation} validation" if validation else ""
        raise InputError(
            f"Task {task.name!r} has {there} {kind} examples, but {needed - validation}{also} "
            "are asked for; ask for fewer."
        )


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, whole numbers in their order, anything else by the alphabet."""
    ordered = sorted(set(names))
    # Python reads no whole number of thousands of digits.
    numbers = all(name.removeprefix("-").isdecimal() and len(name) < 100 for name in ordered)
    return tuple(sorted(ordered, key=int) if numbers else ordered)


def _names(train: Iterable[Any], test: Iterable[Any]) -> tuple[str, ...]:
    """The names in the training set in their order, then those that only the test set has."""
    known, others = set(map(str, train)), set(map(str, test))
    return (*_ordered(known), *_ordered(others - known))


def _group_names(train: Table, test: Table) -> tuple[str, ...]:
    """The natural clients; codes of the training set's are 0, 1, ... without gaps."""
    return () if train.groups is None else _names(train.groups, test.groups or ())


def _split(table: Table, index: dict[str, int], codes: dict[str, int]) -> Split:
    labels = _classes(table, index) if index else _scores(table)
    groups = None
    if codes and table.groups is not None:
        groups = np.array([codes[name] for name in table.groups], np.int32)
    return Split(table.texts, table.pairs, labels, groups, table.contexts, table.choices)


def _scores(table: Table) -> np.ndarray:
    values = []
    for row, label in zip(table.rows, table.labels, strict=True):
        try:
            values.append(float(label))
        except (TypeError, ValueError, OverflowError):
            values.append(float("nan"))
        if not abs(values[-1]) <= float(np.finfo(np.float32).max):
            raise InputError(f"{table.where} row {row}: the score is {label!r}, not a number.")
    return np.array(values, np.float32)


def _classes(table: Table, index: dict[str, int]) -> np.ndarray:
    found = [index.get(str(label), -1) for label in table.labels]
    if -1 in found:
        bad = found.index(-1)
        names = list(index)[-max(index.values()) - 1 :]  # without the numbers
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise InputError(
            f"{table.where} row {table.rows[bad]}: the label {table.labels[bad]!r} is not one of "
            f"the {len(names)} classes ({shown}); correct it or remove the row."
        )
    return np.array(found, np.int32)
