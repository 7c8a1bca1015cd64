"""A user's own files: several names and patterns, one file per client, folders of `datasets`."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets.arrow_tables import SAVED, saved_splits
from fedjax_lora.data.datasets.records import Files, Table
from fedjax_lora.data.datasets.tables import concatenate, cut
from fedjax_lora.data.datasets.text_files import check_rows, check_text_size, largest_size


class Found(NamedTuple):
    """A file that is read.

    Attributes:
      path: the file, or a folder that `datasets` has saved.
      client: what the file is called by as a client.
    """

    path: Path
    client: str


def read_files(files: Files, folder: Path) -> tuple[Table, Table]:
    """Read a user's own files: training and test set.

    Args:
      files: their names.
      folder: the data folder.

    Raises:
      InputError: a name or pattern without a file, a file for both training and test, a broken
        file, or files that do not go together.
    """
    train, test = find(folder, files.train), find(folder, files.test)
    _refuse_both(files, train, test)
    test = test or _saved_tests(train)
    table = _read(files, files.train, [x._replace(path=_of_split(x.path, "train")) for x in train])
    if not test:
        return cut(table)
    return table, _read(
        files, files.test or files.train, [x._replace(path=_of_split(x.path, "test")) for x in test]
    )


def find(folder: Path, names: Sequence[str]) -> list[Found]:
    """Find the files that names and patterns stand for, in the order of the names.

    A pattern has ``*``, ``?``, ``[...]`` or, for any number of folders, ``**``. Where nothing has a
    name, that of the packed file (``.gz``) is tried. A file is a client by the part of its path in
    which a pattern has wild cards, without its ending: ``alice`` for ``data/alice.jsonl`` of
    ``data/*.jsonl`` and for ``data/alice/train.csv`` of ``data/*/train.csv``.

    Raises:
      InputError: a name or pattern without a file.
    """
    found = [x for name in names for x in _find(folder, name)]
    twice = [path for path, count in Counter(x.path for x in found).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is named twice; name each file once.")
    return found


def _find(folder: Path, name: str) -> list[Found]:
    for ending in ("", ".gz"):
        path = folder / (name + ending)
        if is_source(path):
            return [Found(path, _without_ending(path.name))]
    if not glob.has_magic(name):
        raise missing(folder, [name])
    for ending in ("", ".gz"):
        pattern = os.path.join(glob.escape(str(folder)), name + ending)
        paths = _matches(pattern)
        if paths := [path for path in paths if is_source(path)]:
            start = 0 if os.path.isabs(name) else len(folder.parts)
            return [Found(path, _client(path, Path(pattern), start)) for path in paths]
    raise InputError(f"No file matches {folder / name}; check the pattern or --data-dir.")


def _matches(pattern: str) -> list[Path]:
    """Return the paths that match a pattern; none if it cannot be that of a path."""
    try:
        return sorted(map(Path, glob.glob(pattern, recursive=True)))
    except (ValueError, OSError):  # a zero byte, or too long a name
        return []


def _client(path: Path, pattern: Path, start: int) -> str:
    """Return the parts of a path in which its pattern has wild cards, without the ending.

    The first ``start`` parts are the data folder: what is escaped there is no wild card.
    """
    magic = [n >= start and glob.has_magic(part) for n, part in enumerate(pattern.parts)]
    first, after = magic.index(True), len(magic) - 1 - magic[::-1].index(True)
    end = len(path.parts) - (len(pattern.parts) - 1 - after)
    parts = list(path.parts[first:end])
    if end == len(path.parts):
        parts[-1] = _without_ending(parts[-1])
    return "/".join(parts)


def _without_ending(name: str) -> str:
    stem = name.partition(".")[0]
    return stem or name


def _refuse_both(files: Files, train: Sequence[Found], test: Sequence[Found]) -> None:
    """Refuse a pattern for training that also matches a test file.

    The same single file for both was meant so.
    """
    both = sorted({x.path for x in train} & {x.path for x in test})
    if both and (len(train) > 1 or len(test) > 1):
        raise InputError(
            f"{both[0]} is a file of train={_shown(files.train)} and of test={_shown(files.test)}; "
            "name them so that no file is in both."
        )


def _read(files: Files, names: Sequence[str], found: Sequence[Found]) -> Table:
    """Read files as one table."""
    most = largest_size(None)
    check_text_size(_shown(names), sum(_size(x.path) for x in found), most)
    if files.are_clients:
        _refuse_alike_clients(found)
    parts: list[Table] = []
    rows = 0
    for path, client in found:
        table = files.read(path)
        if files.are_clients:
            if table.groups is not None:
                raise InputError(
                    f"{path} states its clients itself; leave out client_files, or the group."
                )
            table = table._replace(groups=[client] * len(table.texts))
        rows += len(table.texts)
        check_rows(_shown(names), rows)
        parts.append(table)
    if len(parts) == 1:
        return parts[0]
    _check_alike(parts)
    return concatenate(_shown(names), parts)


def _refuse_alike_clients(found: Sequence[Found]) -> None:
    seen: dict[str, Path] = {}
    for path, client in found:
        if client in seen:
            raise InputError(
                f"{seen[client]} and {path} would both be the client {client!r}; give the files "
                "different names, or the folders of clients as a pattern, 'data/*/train.csv'."
            )
        seen[client] = path


def _size(path: Path) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


def _check_alike(parts: Sequence[Table]) -> None:
    """Refuse files of which some state class names or clients, and others other ones or none."""
    first = parts[0]
    for part in parts[1:]:
        if part.classes != first.classes:
            raise InputError(
                f"{first.where} states the classes {first.classes or 'nowhere'} and {part.where} "
                f"{part.classes or 'none'}; write them with the same class labels."
            )
        if (part.groups is None) != (first.groups is None):
            raise InputError(
                f"One of {first.where} and {part.where} states clients and the other does not; "
                "give client_files=True, or write clients into both."
            )


def _shown(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else str(list(names))


def missing(folder: Path, names: Sequence[str]) -> InputError:
    """Make the error for files that are not there, or are something else."""
    named = next((name for name in names if os.path.isdir(folder / name)), None)
    if named is not None:
        other = folder / named
        return InputError(
            f"{other} is a folder, but none that datasets has saved (it has no {SAVED[0]}); name a "
            f"file, or a pattern such as '{named}/*{next(_endings(other), '.jsonl')}'."
        )
    if address := next((name for name in names if "://" in name), None):
        return InputError(f"{address} is an address, and files are read; download it first.")
    if special := next((name for name in names if os.path.lexists(folder / name)), None):
        return InputError(
            f"{folder / special} is no regular file, but a broken link, a pipe or a device; put "
            "a file there."
        )
    return InputError(
        f"{folder} has none of {', '.join(names)} (also as .gz); put one there or check --data-dir."
    )


def _endings(folder: Path) -> Iterator[str]:
    """Yield the endings of the files in a folder."""
    return ("".join(p.suffixes) for p in sorted(folder.iterdir()) if p.suffixes and p.is_file())


def is_source(path: Path) -> bool:
    """Whether a path is a file, or a folder that `datasets` has saved."""
    return os.path.isfile(path) or saved_splits(path) is not None


def _saved_tests(train: Sequence[Found]) -> list[Found]:
    """Return the folders of splits that training sets were named by, if they have test sets.

    Raises:
      InputError: some have one and others have not.
    """
    tested = [x for x in train if _has_test(x.path)]
    if tested and len(tested) < len(train):
        other = next(x.path for x in train if x not in tested)
        raise InputError(
            f"{tested[0].path} has a split 'test' and {other} has none; name the test files."
        )
    return tested


def _has_test(path: Path) -> bool:
    """Whether a path is a folder of splits with a test set.

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
    return "test" in splits


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
