"""Loading of tasks: reads the examples, draws subsets, and converts labels to numbers.

Nothing is dropped silently. Rows skipped for a documented defect are counted in `TaskData.skipped`.
Test texts that also occur in the training set are kept and counted in `TaskData.overlap`, for the
caller to report; AG News contains such texts.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.data.datasets.label_notes import are_scores, label_notes
from fedjax_lora.data.datasets.records import Split, Table, Task, TaskData
from fedjax_lora.data.datasets.registry import TASKS, find_task
from fedjax_lora.data.datasets.sources import read_task, read_test
from fedjax_lora.data.prompts import DATE

MOST_SCORES = 20
"""Numbers that are not whole and may be classes, such as stars in halves."""


def load(
    spec: str,
    *,
    data_dir: str | None = None,
    train_examples: int | None = None,
    validation_examples: int = 0,
    test_examples: int | None = None,
    seed: int = 0,
    date: str = DATE,
    classes: Sequence[str] = (),
) -> TaskData:
    """Load the task that `spec` names.

    Subsets are drawn without replacement, depend only on `seed` and keep the order of the source;
    the validation set is drawn from the training examples and is disjoint from `train`.

    Args:
      spec: a name in `TASKS`, or `"file(train='a.csv', ...)"`.
      data_dir: a folder of task folders; without it a task is read from the Hugging Face hub.
      train_examples: size of the training set; all by default.
      validation_examples: size of the validation set.
      test_examples: size of the test set; all by default.
      seed: chooses the subsets.
      date: date that a chat template prints in the prompts of a language task.
      classes: names of the classes in label order; by default those of the data.

    Raises:
      InputError: unknown task, missing or malformed data, or more examples requested than exist.
    """
    task = find_task(spec)
    task = dataclasses.replace(
        task,
        prompting=task.prompting._replace(date=date),
        classes=tuple(classes) or task.classes,
    )
    _check_sizes(train_examples, validation_examples, test_examples)
    train_table, test_table = _tables(task, data_dir)
    classes, index = _class_index(task, train_table, test_table)
    groups = _group_names(train_table, test_table)
    codes = {name: code for code, name in enumerate(groups)}
    all_train, all_test = (_split(table, index, codes) for table in (train_table, test_table))

    _check_available(task, len(all_train.texts), train_examples, validation_examples, "training")
    _check_available(task, len(all_test.texts), test_examples, 0, "test")
    order = np.random.default_rng([seed, 0]).permutation(len(all_train.texts))
    rest = order[validation_examples:]
    train = all_train.take(np.sort(rest if train_examples is None else rest[:train_examples]))
    validation = None
    if validation_examples:
        validation = all_train.take(np.sort(order[:validation_examples]))
    order = np.random.default_rng([seed, 1]).permutation(len(all_test.texts))
    test = all_test.take(np.sort(order[:test_examples]))
    skipped = train_table.skipped + test_table.skipped
    overlap = count_overlap(train, test)
    notes = [*train_table.notes, *test_table.notes]
    if task.type == "classification":
        notes += label_notes(classes, train.labels, test.labels)
    return TaskData(task, classes, train, validation, test, overlap, skipped, groups, tuple(notes))


def _class_index(task: Task, train: Table, test: Table) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names in label order, and the label of each name that a source may use."""
    if task.type == "regression":
        return (), {}
    if task.type == "language":  # the test set may have further categories
        classes = _names(train.labels, test.labels)
    else:
        classes = task.classes or train.classes or _sorted_names(_labels(train, test))
        if not (task.classes or train.classes):
            _refuse_scores(train, classes)
    _refuse_repeated(train, classes)
    index = {name: label for label, name in enumerate(classes)}
    if task.classes or train.classes:  # then a source may also use the number of a class
        index = {str(label): label for label in range(len(classes))} | index
    return classes, index


def _refuse_repeated(train: Table, classes: tuple[str, ...]) -> None:
    """Refuse a class name that the source states twice.

    Raises:
      InputError: it does.
    """
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise InputError(
            f"{train.where} states the class {repeated[0]!r} twice; give each class its own name."
        )


def _refuse_scores(train: Table, classes: tuple[str, ...]) -> None:
    """Refuse labels that are scores and not classes.

    Raises:
      InputError: they are numbers, not all of them whole, and there are many or one occurs once.
    """
    counts = Counter(map(str, train.labels))
    if are_scores(classes) and (len(classes) > MOST_SCORES or min(counts.values()) == 1):
        raise InputError(
            f"{train.where}: the labels are {len(classes)} different numbers such as "
            f"{next(name for name in classes if are_scores([name]))}; scores need metric='pearson' "
            "(classes need names, or whole numbers)."
        )


def _labels(train: Table, test: Table) -> Iterable[str]:
    """Labels that make the classes: also those of a test set that is drawn from the same file."""
    return map(str, [*train.labels, *(test.labels if test.where == train.where else ())])


def _tables(task: Task, data_dir: str | None) -> tuple[Table, Table]:
    """Read (train, test) according to the task's options."""
    prompting = task.prompting
    if prompting.test is None:
        tables = read_task(task, data_dir)
    else:
        tables = (read_task(task, data_dir)[0], read_test(TASKS[prompting.test], data_dir))
    if prompting.clients == "category":
        tables = tuple(table._replace(groups=[*map(str, table.labels)]) for table in tables)
    train, test = tables
    return train, test


def count_overlap(train: Split, test: Split) -> int:
    """Count the examples of `test` whose text (pairs: both texts) also occurs in `train`.

    Examples of a language task are compared by instruction and context, not by completion. Texts
    that differ only in case and white space count as the same.
    """
    train_keys = set(_keys(train))
    return sum(key in train_keys for key in _keys(test))


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
    task: Task, available: int, requested: int | None, validation: int, kind: str
) -> None:
    if available == 0:
        raise InputError(f"Task {task.name!r} has no {kind} examples at all; check its files.")
    requested = 1 if requested is None else requested
    if requested + validation > available:
        also = f" and {validation} validation" if validation else ""
        raise InputError(
            f"Task {task.name!r} has {available} {kind} examples, but {requested}{also} "
            "are asked for; ask for fewer."
        )


def _sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Sort distinct names: by value if all are whole numbers, else alphabetically."""
    distinct = sorted(set(names))
    # Python refuses to parse whole numbers of thousands of digits.
    numbers = all(name.removeprefix("-").isdecimal() and len(name) < 100 for name in distinct)
    return tuple(sorted(distinct, key=int) if numbers else distinct)


def _names(train: Iterable[Any], test: Iterable[Any]) -> tuple[str, ...]:
    """Sorted names of the training set, then those that occur only in the test set."""
    train_names, test_names = set(map(str, train)), set(map(str, test))
    return (*_sorted_names(train_names), *_sorted_names(test_names - train_names))


def _group_names(train: Table, test: Table) -> tuple[str, ...]:
    """Names of the natural clients; those of the training set have the codes 0, 1, ... first."""
    return () if train.groups is None else _names(train.groups, test.groups or ())


def _split(table: Table, index: dict[str, int], codes: dict[str, int]) -> Split:
    labels = _classes(table, index) if index else _scores(table)
    groups = None
    if codes and table.groups is not None:
        groups = np.array([codes[name] for name in table.groups], np.int32)
    return Split(
        table.texts, table.pairs, labels, groups, table.contexts, table.choices, table.turns
    )


def _scores(table: Table) -> np.ndarray:
    values = []
    for row, label in enumerate(table.labels):
        try:
            value = float(label)
        except OverflowError:
            value = math.inf
        except (TypeError, ValueError):
            value = math.nan
        if not abs(value) <= float(np.finfo(np.float32).max):
            problem = "not a number" if math.isnan(value) else "more than float32 holds"
            raise InputError(f"{table.place(row)}: the score is {label!r}, {problem}.")
        values.append(value)
    return np.array(values, np.float32)


def _classes(table: Table, index: dict[str, int]) -> np.ndarray:
    labels = [index.get(str(label), -1) for label in table.labels]
    if -1 in labels:
        bad = labels.index(-1)
        names = list(index)[-max(index.values()) - 1 :]  # without the numbers
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        advice = "correct it or remove the row"
        if are_scores([*names, str(table.labels[bad])]):
            advice = "labels that are scores need metric='pearson'"
        raise InputError(
            f"{table.place(bad)}: the label {table.labels[bad]!r} is not one of "
            f"the {len(names)} classes ({shown}); {advice}."
        )
    return np.array(labels, np.int32)
