"""A JSON file that is one object: columns, the examples of each client, or LEAF's format.

| form | who writes it |
| --- | --- |
| ``{column: [value, ...]}`` | `datasets.Dataset.to_dict` |
| ``{column: {row: value}}`` | `pandas.DataFrame.to_json` |
| ``{row: {column: value}}`` | pandas, ``orient='index'`` |
| ``{client: [{column: value}, ...]}``, ``{client: {column: [value, ...]}}`` | federated data |
| ``{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}`` | LEAF |

LEAF (Caldas et al., https://arxiv.org/abs/1812.01097): the columns are ``x`` and ``y``, and where
``x`` is a list of fields (as in Sent140) those are ``x.0``, ``x.1``, ...
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets.delimited import Names, chosen

NOT_CLIENTS = frozenset(
    ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "data",
     "rows", "examples", "instances", "records", "items", "samples")
)  # fmt: skip
"""Names that an object gives to lists of examples which are no clients."""


class Record(NamedTuple):
    """An example of a JSON file.

    Attributes:
      number: the number of its row, from 1.
      value: its columns by name, if the file is as it should be.
      client: its natural client, if the file states it.
    """

    number: int
    value: object
    client: str | None = None


def records_of(path: Path, content: Mapping[str, object], names: Names) -> Iterator[Record]:
    """Yield the examples of a file that is a single object.

    Args:
      path: the file, for messages.
      content: the object.
      names: the columns that are read, by which columns are told from clients.

    Raises:
      InputError: an object of no known form, or one whose parts do not go together.
    """
    if isinstance(content.get("user_data"), dict) and isinstance(content.get("users"), list):
        return _of_clients(path, _leaf(path, content))
    wanted = chosen(names, list(content))
    if wanted and content.keys() >= set(wanted):
        return _numbered(_table(path, {name: content[name] for name in wanted}, content))
    if _all(content, _is_row):
        return _numbered(content.values())
    if _all(content, lambda value: isinstance(value, list | dict)):
        _refuse_splits(path, content)
        return _of_clients(path, content)
    raise InputError(
        f"{path} is a JSON object of no form that is read (its fields: {_listed(content)}); write "
        "an array with one object per example, one object per line, or {client: [examples]}."
    )


def _all(content: Mapping[str, object], has: Callable[[object], bool]) -> bool:
    """Whether an object has values, and all have a property."""
    return bool(content) and all(map(has, content.values()))


def _is_row(value: object) -> bool:
    """Whether a value is an example: an object without lists of values."""
    return isinstance(value, dict) and not any(isinstance(x, list | dict) for x in value.values())


def _numbered(values: Iterable[object]) -> Iterator[Record]:
    return (Record(number, value) for number, value in enumerate(values, start=1))


def _table(path: Path, columns: Mapping[str, Any], row: Mapping[str, Any]) -> list[Any]:
    """Return the rows of an object that holds columns, or the object if it is an only example."""
    lists = {
        name: list(column.values()) if isinstance(column, dict) else column
        for name, column in columns.items()
    }
    if not all(isinstance(x, list) and not isinstance(next(iter(x), None), dict)
               for x in lists.values()):  # fmt: skip
        return [row]
    if len({len(column) for column in lists.values()}) > 1:
        raise InputError(f"{path} holds columns of different lengths; write one value per example.")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _refuse_splits(path: Path, content: Mapping[str, object]) -> None:
    if content.keys() <= NOT_CLIENTS:
        raise InputError(
            f"{path} holds the lists {_listed(content)}, which are no clients; write each list of "
            "examples into a file of its own."
        )


def _of_clients(path: Path, content: Mapping[str, Any]) -> Iterator[Record]:
    number = 0
    for client, examples in content.items():
        where = f"{path}, client {client!r}"
        for example in _rows(where, examples) if isinstance(examples, dict) else examples:
            number += 1
            if not isinstance(example, dict):
                raise InputError(f"{where} holds {example!r}; write one object per example.")
            yield Record(number, example, str(client))


def _rows(where: str, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if len(lengths) > 1 or -1 in lengths:
        raise InputError(f"{where}: its columns are not lists of one length; correct them.")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _leaf(path: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the columns of each user of LEAF's format, the fields of ``x`` as columns."""
    users = dict.fromkeys(map(str, content["users"]))
    if users.keys() != content["user_data"].keys():
        raise InputError(f"{path}: users and the keys of user_data differ; correct the file.")
    counts = content.get("num_samples", [])
    clients = {}
    for at, user in enumerate(users):
        columns = content["user_data"][user]
        if not isinstance(columns, dict):
            raise InputError(f"{path}, user {user!r}: user_data holds no x and y; correct it.")
        rows = _rows(f"{path}, user {user!r}", columns)
        if counts and (at >= len(counts) or counts[at] != len(rows)):
            raise InputError(
                f"{path}, user {user!r}: num_samples does not say that there are {len(rows)} "
                "samples; correct the file."
            )
        clients[user] = [_with_fields(row) for row in rows]
    return clients


def _with_fields(row: dict[str, Any]) -> dict[str, Any]:
    fields = row["x"] if isinstance(row.get("x"), list) else []
    return row | {f"x.{n}": field for n, field in enumerate(fields)}


def _listed(content: Mapping[str, object]) -> str:
    shown = ", ".join(repr(str(name)) for name in list(content)[:5])
    return shown + (", ..." if len(content) > 5 else "")
