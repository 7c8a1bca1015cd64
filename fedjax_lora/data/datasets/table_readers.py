"""Readers of tables: named columns of csv, tsv, jsonl, json, parquet and arrow files."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.core.safe_text import is_blank
from fedjax_lora.data.datasets import arrow_tables, json_rows
from fedjax_lora.data.datasets.delimited import (
    DELIMITERS,
    USUAL,
    Layout,
    Missing,
    Names,
    read_delimited,
)
from fedjax_lora.data.datasets.records import Table, Value
from fedjax_lora.data.datasets.text_files import plain_name

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("csv", "tsv", "jsonl", "json", "parquet", "arrow", "saved")
"""Formats of tables; ``saved`` is a folder of `datasets.Dataset.save_to_disk`."""

_ENDINGS = {
    "txt": "tsv", "tab": "tsv", "ndjson": "jsonl", "pq": "parquet", "feather": "arrow",
}  # fmt: skip


class FileColumns(NamedTuple):
    """Columns of a file.

    Attributes:
      values: the values of each column.
      rows: the number of each row in the file, from 1 as in a spreadsheet.
      classes: class names in label order, of the columns that the file states as class labels.
      clients: the natural client of each row, if the file states them.
    """

    values: dict[str, list[Any]]
    rows: Sequence[int]
    classes: dict[str, tuple[str, ...]]
    clients: list[str] | None = None


class HubSplit(NamedTuple):
    """A split of a data set of the Hugging Face hub, which is read as a file is.

    Attributes:
      where: its name, for messages.
      data: a `datasets.Dataset`.
    """

    where: str
    data: "Dataset"

    def __str__(self) -> str:
        return self.where


Source = Path | HubSplit


def read_named(
    path: Source,
    *,
    text: str,
    label: str,
    pair: str | None = None,
    group: str | None = None,
    format: str | None = None,
    layout: Layout = USUAL,
) -> Table:
    """Read a table from named columns of a file, see `read_columns`; no field may be empty.

    Args:
      path: the file.
      text: name of the text column.
      label: name of the label column.
      pair: name of the second text's column.
      group: name of the column with the natural client of each example.
      format: one of `FORMATS`; by default it follows from the ending of the file name.
      layout: how a csv or tsv file is written.

    Raises:
      InputError: no such file, column or format; a malformed row; a missing or empty value.
    """
    names = [name for name in (text, label, pair, group) if name is not None]
    columns, rows, classes, clients = read_columns(path, names, format=format, layout=layout)
    return Table(
        where=str(path),
        texts=[str(value) for value in columns[text]],
        labels=columns[label],
        rows=rows,
        pairs=[str(value) for value in columns[pair]] if pair else None,
        groups=[str(value) for value in columns[group]] if group else clients,
        classes=classes.get(label, ()),
    )


def read_columns(
    path: Source,
    names: Names,
    *,
    format: str | None = None,
    layout: Layout = USUAL,
    blank: Collection[str] = (),
    absent: Collection[str] = (),
    optional: Collection[str] = (),
    checked: bool = True,
) -> FileColumns:
    """Read columns of a table: csv, tsv, jsonl, json, parquet, arrow, or a folder of `datasets`.

    csv has double-quoted fields; in tsv quotes are text (as in GLUE); jsonl has one object per
    line, json an array of objects or one object per line, or one of the forms in `json_objects`.
    All but folders may be compressed (.gz, .xz, .bz2); endings may be in capitals.

    Args:
      path: the file, or a split of a data set on the hub.
      names: the columns; each row must have a text or number in all of them.
      format: one of `FORMATS`; by default it follows from the ending of the file name.
      layout: how a csv or tsv file is written.
      blank: columns whose texts may be empty or white space.
      absent: columns whose value may be null, or not there in some JSON objects; it is then an
        empty text.
      optional: columns that are read where a file has them, with None where a row has not.
      checked: whether values must be texts or numbers; otherwise the caller checks them.

    Raises:
      InputError: no such file, column or format; a malformed row; a missing or empty value; a file
        that is larger than `text_files.MOST_BYTES` or has more than `text_files.MOST_ROWS` rows.
    """
    format = "hub" if isinstance(path, HubSplit) else format or _format_of(path)
    if format not in (*FORMATS, "hub"):
        raise unknown(f"file format (of {path})", format, FORMATS)
    if layout != USUAL and format not in DELIMITERS:
        raise InputError(
            f"{path} is read as {format}; delimiter, header and encoding are only for csv and tsv."
        )
    found = _read(path, names, format, layout, Missing(absent, optional))
    values = found.values
    for name in set(absent) & set(values):
        values[name] = ["" if value is None else value for value in values[name]]
    for name, column in values.items() if checked else ():
        check_values(str(path), name, column, found.rows, blank=name in blank or name in absent)
    return found


def _read(path: Any, names: Names, format: str, layout: Layout, missing: Missing) -> FileColumns:
    """Read raw columns, in which values may be missing."""
    names = missing.with_optional(names)
    if format in DELIMITERS:
        return FileColumns(*read_delimited(path, names, format=format, layout=layout), {})
    if format in ("jsonl", "json"):
        read = {"jsonl": json_rows.read_jsonl, "json": json_rows.read_json_rows}[format]
        values, rows, clients = read(path, names, missing)
        return FileColumns(values, rows, {}, clients)
    readers = {
        "hub": lambda split, names: arrow_tables.read_data_set(split.where, split.data, names),
        "parquet": arrow_tables.read_parquet,
        "arrow": arrow_tables.read_arrow,
        "saved": arrow_tables.read_saved,
    }
    values, classes = readers[format](path, names)
    return FileColumns(values, range(1, len(next(iter(values.values()))) + 1), classes)


def columns_of(path: Path, names: Sequence[str]) -> dict[str, list[Value]] | None:
    """Read named columns of a file whose ending is that of a table; None for any other ending.

    Texts may be empty: there is a prediction for each row.

    Raises:
      InputError: no such file or column; a malformed row; a missing value.
    """
    is_text = plain_name(path).suffix.lower() == ".txt"
    is_table = not is_text and _format_of(path) in FORMATS
    return read_columns(path, names, blank=names).values if is_table else None


def _format_of(path: Path) -> str:
    """Return the format that the ending of a name stands for, or the ending itself."""
    if arrow_tables.saved_splits(path) is not None:
        return "saved"
    ending = plain_name(path).suffix.lower().lstrip(".")
    return _ENDINGS.get(ending, ending)


def check_values(
    where: str, name: str, column: Sequence[object], rows: Sequence[int], *, blank: bool = False
) -> None:
    """Check that a column holds texts and numbers.

    Args:
      where: the file, for the message.
      name: the column.
      column: its values.
      rows: the number of each row.
      blank: whether a text may be empty or white space.

    Raises:
      InputError: a missing, empty or other value, named with its row.
    """
    for row, value in zip(rows, column, strict=True):
        if not isinstance(value, str | int | float) or value != value:
            raise InputError(
                f"{where} row {row}: column {name!r} holds {value!r}, not a text or number; "
                "fill it or remove the row."
            )
        if isinstance(value, str):
            if not blank and is_blank(value):
                raise InputError(
                    f"{where} row {row}: column {name!r} is {'blank' if value else 'empty'}; fill "
                    "it or remove the row."
                )
            if not _is_text(value):
                raise InputError(
                    f"{where} row {row}: column {name!r} holds half a character (a lone "
                    "surrogate); save the text again as UTF-8."
                )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
