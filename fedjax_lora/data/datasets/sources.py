"""Sources of a task's rows: built in, files under a data folder, or the Hugging Face hub."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.data.datasets.arrow_tables import SAVED, saved_splits
from fedjax_lora.data.datasets.records import Folder, Hub, Local, Table, Task
from fedjax_lora.data.datasets.table_readers import check_values

CUT_SEED = 0  # draws the test set of data that has none, whatever the run's seed
TEST_SHARE = 0.2


def read_task(task: Task, data_dir: str | None) -> tuple[Table, Table]:
    """Read (train, test) of a task: built in, else from `data_dir` if given, else from the hub.

    Raises:
      InputError: no such file or folder, a broken file, or the hub cannot be reached.
    """
    if task.builtin is not None:
        return task.builtin()
    if task.local is not None and (data_dir is not None or task.hub is None):
        return _read_local(task.local, Path(data_dir or "."))
    if task.hub is None:
        raise InputError(f"Task {task.name!r} has no source; choose another task.")
    parts = [task.hub.train, *([task.hub.test] if task.hub.test else [])]
    tables = _read_hub(task.name, task.hub, parts)
    return _cut(tables[0]) if task.hub.test is None else (tables[0], tables[1])


def read_test(task: Task, data_dir: str | None) -> Table:
    """Read the whole test set, also where `read_task` would split the same file in two.

    Raises:
      InputError: as `read_task`.
    """
    if isinstance(task.local, Local) and data_dir is not None:
        path = _first(_folder(task.local, Path(data_dir)), task.local.test)
        if path is not None:
            return task.local.read(path)
    if task.hub is not None and task.hub.test is not None and data_dir is None:
        return _read_hub(task.name, task.hub, [task.hub.test])[0]
    return read_task(task, data_dir)[1]


def _folder(local: Local | Folder, root: Path) -> Path:
    folder = root / local.folder
    if not os.path.isdir(folder):
        raise InputError(f"There is no folder {folder}; check --data-dir or put the files there.")
    return folder


def _read_local(local: Local | Folder, root: Path) -> tuple[Table, Table]:
    folder = _folder(local, root)
    if isinstance(local, Folder):
        table, tests = local.read(folder)
        return _cut(table) if tests is None else (table, tests)
    train = _first(folder, local.train)
    test = _first(folder, local.test)
    if train is None or (test is None and not local.cut):
        raise _missing(folder, local.train if train is None else local.test)
    test = _saved_test(train) if test is None else _of_split(test, "test")
    train = _of_split(train, "train")
    table = local.read(train)
    if test is None or (local.cut and test == train):
        return _cut(table)
    return table, local.read(test)


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    paths = [folder / (name + ending) for name in names for ending in ("", ".gz")]
    return next((path for path in paths if _is_source(path)), None)


def _missing(folder: Path, names: Sequence[str]) -> InputError:
    """Make the error for files that are not there, or are folders of something else."""
    other = next((folder / name for name in names if os.path.isdir(folder / name)), None)
    if other is not None:
        return InputError(
            f"{other} is a folder, but none that datasets has saved (it has no {SAVED[0]}); name a "
            "file."
        )
    return InputError(
        f"{folder} has none of {', '.join(names)} (also as .gz); put one there or check --data-dir."
    )


def _is_source(path: Path) -> bool:
    """Whether a path is a file, or a folder that `datasets` has saved."""
    return os.path.isfile(path) or saved_splits(path) is not None


def _saved_test(path: Path) -> Path | None:
    """Return the folder of splits that a training set was named by, if it has a test set.

    Raises:
      InputError: it has other splits, of which one may be meant for testing.
    """
    splits = saved_splits(path) or ()
    others = [split for split in splits if split != "train"]
    if "train" in splits and "test" not in splits and others:
        raise InputError(
            f"{path} has no split 'test' (splits: {', '.join(splits)}); give "
            f"test='{path.name}/{others[0]}', or train='{path.name}/train' to draw a test set."
        )
    return path / "test" if "test" in splits else None


def _of_split(path: Path, split: str) -> Path:
    """Return the folder of a split, of a folder with splits; any other path as it is.

    Raises:
      InputError: the folder has no such split.
    """
    splits = saved_splits(path)
    if not splits:
        return path
    if split not in splits:
        raise InputError(
            f"{path} has no split {split!r} (splits: {', '.join(splits)}); name the folder of one, "
            f"such as '{path.name}/{splits[0]}'."
        )
    return path / split


def _cut(table: Table) -> tuple[Table, Table]:
    """Split a table into training and test set, with `CUT_SEED`."""
    size = len(table.texts)
    order = np.random.default_rng(CUT_SEED).permutation(size)
    cut = round(TEST_SHARE * size)
    test, train = (_take_rows(table, np.sort(part)) for part in (order[:cut], order[cut:]))
    return train, test._replace(skipped=0)


def _take_rows(table: Table, index: np.ndarray) -> Table:
    columns = {
        name: [column[i] for i in index]
        for name in ("texts", "labels", "rows", "pairs", "groups", "contexts", "choices")
        if (column := getattr(table, name)) is not None
    }
    return table._replace(**columns)


def _read_hub(name: str, hub: Hub, splits: list[str]) -> list[Table]:
    import datasets  # slow to import; only this path needs it

    where = f"{hub.id} ({hub.config})" if hub.config else hub.id
    try:
        parts = datasets.load_dataset(hub.id, hub.config, split=splits)
    except Exception as error:  # the hub client raises many unrelated types
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"Task {name!r} could not be loaded from the hub's {where} ({reason}); connect to the "
            "network, or pass --data-dir with the files on disk."
        ) from error
    read = hub.read or partial(_hub_table, hub)
    return [read(f"hub dataset {where}", part) for part in parts]


def _hub_table(hub: Hub, where: str, part: Any) -> Table:
    names = [*hub.columns, hub.label, *([hub.group] if hub.group else [])]
    raise_all(where, [f"no column {name!r}" for name in names if name not in part.column_names])
    columns, rows = {name: list(part[name]) for name in names}, range(1, len(part) + 1)
    for name, column in columns.items():
        check_values(where, name, column, rows, blank=True)
    return Table(
        where,
        texts=columns[hub.columns[0]],
        labels=columns[hub.label],
        rows=rows,
        pairs=columns[hub.columns[1]] if len(hub.columns) > 1 else None,
        groups=[str(value) for value in columns[hub.group]] if hub.group else None,
        classes=tuple(getattr(part.features[hub.label], "names", ())),
    )
