"""Readers of tables: named columns of csv, tsv, jsonl, json, parquet and arrow files."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.data.datasets import arrow_tables, json_rows
from fedjax_lora.data.datasets.delimited import DELIMITERS, USUAL, Layout, read_delimited
from fedjax_lora.data.datasets.records import Table, Value
from fedjax_lora.data.datasets.text_files import plain_name

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
    """

    values: dict[str, list[Value]]
    rows: Sequence[int]
    classes: dict[str, tuple[str, ...]]


def read_named(
    path: Path,
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
    columns, rows, classes = read_columns(path, names, format=format, layout=layout)
    return Table(
        where=str(path),
        texts=[str(value) for value in columns[text]],
        labels=columns[label],
        rows=rows,
        pairs=[str(value) for value in columns[pair]] if pair else None,
        groups=[str(value) for value in columns[group]] if group else None,
        classes=classes.get(label, ()),
    )


def read_columns(
    path: Path,
    names: Sequence[str],
    *,
    format: str | None = None,
    layout: Layout = USUAL,
    blank: Collection[str] = (),
    absent: Collection[str] = (),
) -> FileColumns:
    """Read columns of a table: csv, tsv, jsonl, json, parquet, arrow, or a folder of `datasets`.

    csv has double-quoted fields; in tsv quotes are text (as in GLUE); jsonl has one object per
    line, json an array of objects or one object per line. All but folders may be compressed (.gz,
    .xz, .bz2); endings may be in capitals.

    Args:
      path: the file.
      names: the columns; each row must have a text or number in all of them.
      format: one of `FORMATS`; by default it follows from the ending of the file name.
      layout: how a csv or tsv file is written.
      blank: columns whose texts may be empty or white space.
      absent: columns whose value may be null, or not there in some JSON objects; it is then an
        empty text.

    Raises:
      InputError: no such file, column or format; a malformed row; a missing or empty value; a file
        that is larger than `text_files.MOST_BYTES` or has more than `text_files.MOST_ROWS` rows.
    """
    format = format or _format_of(path)
    if format not in FORMATS:
        raise unknown(f"file format (of {path})", format, FORMATS)
    if layout != USUAL and format not in DELIMITERS:
        raise InputError(
            f"{path} is read as {format}; delimiter, header and encoding are only for csv and tsv."
        )
    values, rows, classes = _read(path, names, format, layout, absent)
    for name in set(absent) & set(values):
        values[name] = ["" if value is None else value for value in values[name]]
    for name, column in values.items():
        check_values(str(path), name, column, rows, blank=name in blank or name in absent)
    return FileColumns(values, rows, classes)


def _read(
    path: Path, names: Sequence[str], format: str, layout: Layout, absent: Collection[str]
) -> tuple[dict[str, list[Any]], Sequence[int], dict[str, tuple[str, ...]]]:
    """Read raw columns, in which values may be missing."""
    if format in DELIMITERS:
        return *read_delimited(path, names, format=format, layout=layout), {}
    if format in ("jsonl", "json"):
        read = {"jsonl": json_rows.read_jsonl, "json": json_rows.read_json_rows}[format]
        return *read(path, names, absent), {}
    readers = {
        "parquet": arrow_tables.read_parquet,
        "arrow": arrow_tables.read_arrow,
        "saved": arrow_tables.read_saved,
    }
    values, classes = readers[format](path, names)
    return values, range(1, len(values[names[0]]) + 1), classes


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
    where: str, name: str, column: Sequence[Any], rows: Sequence[int], *, blank: bool = False
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
            if not blank and not value.strip():
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
