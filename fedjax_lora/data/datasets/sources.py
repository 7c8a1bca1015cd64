"""Sources of a task's rows: built in, files under a data folder, or the Hugging Face hub."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.data.datasets.file_sets import is_source, missing, read_files
from fedjax_lora.data.datasets.records import Files, Folder, Hub, Local, Table, Task
from fedjax_lora.data.datasets.table_readers import check_values
from fedjax_lora.data.datasets.tables import cut


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
    if task.hub.own:
        return _read_own(task.hub)
    parts = [task.hub.train, *([task.hub.test] if task.hub.test else [])]
    tables = _read_hub(task.name, task.hub, parts)
    return cut(tables[0]) if task.hub.test is None else (tables[0], tables[1])


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


def _read_local(local: Local | Files | Folder, root: Path) -> tuple[Table, Table]:
    if isinstance(local, Files):
        return read_files(local, root)
    folder = _folder(local, root)
    if isinstance(local, Folder):
        table, tests = local.read(folder)
        return cut(table) if tests is None else (table, tests)
    train = _first(folder, local.train)
    test = _first(folder, local.test)
    if train is None or (test is None and not local.cut):
        raise missing(folder, local.train if train is None else local.test)
    table = local.read(train)
    if test is None or (local.cut and test == train):
        return cut(table)
    return table, local.read(test)


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    paths = [folder / (name + ending) for name in names for ending in ("", ".gz")]
    return next((path for path in paths if is_source(path)), None)


def _read_hub(name: str, hub: Hub, splits: list[str]) -> list[Table]:
    advice = "connect to the network, or pass --data-dir with the files on disk"
    parts = _load_hub(hub, f"Task {name!r}", advice, split=splits)
    read = hub.read or partial(_hub_table, hub)
    return [read(_where(hub), part) for part in parts]


def _where(hub: Hub) -> str:
    return f"hub dataset {hub.id} ({hub.config})" if hub.config else f"hub dataset {hub.id}"


def _load_hub(hub: Hub, subject: str, advice: str, **options: Any) -> Any:
    """Load a data set of the hub.

    Raises:
      InputError: ``subject`` could not be loaded; ``advice`` says what to do.
    """
    import datasets  # slow to import; only this path needs it

    where = _where(hub).removeprefix("hub dataset ")
    try:
        return datasets.load_dataset(hub.id, hub.config, **options)
    except Exception as error:  # the hub client raises many unrelated types
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{subject} could not be loaded from the hub's {where} ({reason}); {advice}."
        ) from error


def _read_own(hub: Hub) -> tuple[Table, Table]:
    """Read a user's own data set of the hub.

    Raises:
      InputError: it cannot be loaded, or has no such split.
    """
    advice = "check its id, connect to the network, or name a folder that datasets has saved"
    splits = _load_hub(hub, "Your data set", advice)
    test = hub.test or ("test" if "test" in splits else None)
    for name in (hub.train, test):
        if name is not None and name not in splits:
            raise InputError(
                f"{_where(hub)} has no split {name!r} (splits: {', '.join(splits)}); name one as "
                "train and, to draw no test set, one as test."
            )
    assert hub.read is not None
    table = hub.read(f"{_where(hub)}, split {hub.train}", splits[hub.train])
    if test is None:
        return cut(table)
    return table, hub.read(f"{_where(hub)}, split {test}", splits[test])


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
