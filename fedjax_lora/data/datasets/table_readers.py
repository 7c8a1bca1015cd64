"""Readers of tables: named columns of csv, tsv, jsonl, json and parquet files.

Comma- and tab-separated files are read with the standard library's `csv` and not with the `csv`
builder of `datasets`: the builder (pandas) turns the texts "NA" and "null" into missing values,
pads short rows silently, and does not report the row in which a file is malformed.
"""

import csv
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedjax_lora.core.errors import InputError, raise_all, unknown
from fedjax_lora.core.untrusted_files import check_regular_file, first_line
from fedjax_lora.data.datasets.records import Table, Value
from fedjax_lora.data.datasets.text_files import OPENERS, lines, open_text, plain_name, read_json

LARGEST_PARQUET = 2**34
"""Largest uncompressed size in bytes that a parquet file may declare for the columns read."""

MOST_ROWS = 10**8
"""Largest number of rows of a parquet file, in which repeated rows take no bytes."""

Columns = tuple[dict[str, list[Value]], Sequence[int]]
"""The values of each column, and the number of each row in the file, from 1."""

_RawColumns = tuple[dict[str, list[Any]], Sequence[int]]  # before missing values are refused

FORMATS = ("csv", "tsv", "jsonl", "json", "parquet")


def read_rows(path: Path, *, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    r"""Yield (row number, fields) of a delimited file; blank lines are counted but not yielded.

    Args:
      path: the file.
      delimiter: `","` or `"\t"`.
      quoted: whether double quotes enclose fields; otherwise they are text.

    Raises:
      InputError: during iteration: the file is missing or not UTF-8, a line is too long, or quotes
        are malformed.
    """
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    row = 0
    with open_text(path) as stream:
        try:
            for row, fields in enumerate(
                csv.reader(lines(path, stream), delimiter=delimiter, quoting=quoting, strict=True),
                start=1,
            ):
                if fields:
                    yield row, fields
        except csv.Error as error:
            raise InputError(
                f"{path} row {row + 1} is not well-formed ({error}); check its quotes."
            ) from error


def check_width(path: Path, row: int, fields: Sequence[str], width: int) -> None:
    """Check the number of fields of a row.

    Raises:
      InputError: a field is missing or extra.
    """
    if len(fields) != width:
        raise InputError(
            f"{path} row {row} has {len(fields)} fields where {width} are expected; "
            "check its delimiters and quotes."
        )


def read_named(
    path: Path,
    *,
    text: str,
    label: str,
    pair: str | None = None,
    group: str | None = None,
    format: str | None = None,
) -> Table:
    """Read a table from named columns of a file, see `read_columns`.

    Args:
      path: the file.
      text: name of the text column.
      label: name of the label column.
      pair: name of the second text's column.
      group: name of the column with the natural client of each example.
      format: one of `FORMATS`; by default it follows from the ending of the file name.

    Raises:
      InputError: no such file, column or format; a malformed row; a missing value.
    """
    names = [name for name in (text, label, pair, group) if name is not None]
    columns, rows = read_columns(path, names, format=format)
    return Table(
        where=str(path),
        texts=[str(value) for value in columns[text]],
        labels=columns[label],
        rows=rows,
        pairs=[str(value) for value in columns[pair]] if pair else None,
        groups=[str(value) for value in columns[group]] if group else None,
    )


def read_columns(path: Path, names: Sequence[str], *, format: str | None = None) -> Columns:
    """Read columns of a csv, tsv, jsonl, json or parquet file (.gz and .xz too), and row numbers.

    csv has a header and double-quoted fields; tsv has a header and quotes are text (as in GLUE);
    jsonl has one object per line, json one array of objects.

    Args:
      path: the file.
      names: the columns; each row must have a text or number in all of them.
      format: one of `FORMATS`; by default it follows from the ending of the file name.

    Returns:
      The values of each column, and the number of each row in the file, from 1.

    Raises:
      InputError: no such file, column or format; a malformed row; a missing value.
    """
    format = format or _ending(path)
    if format not in FORMATS:
        raise unknown(f"file format (of {path})", format, FORMATS)
    columns, rows = _COLUMNS[format](path, names)
    for name, column in columns.items():
        _refuse_missing(path, name, column, rows)
    return columns, rows


def columns_of(path: Path, names: Sequence[str]) -> dict[str, list[Value]] | None:
    """Read named columns of a file whose ending is in `FORMATS`; None for any other ending.

    Raises:
      InputError: no such file or column; a malformed row; a missing value.
    """
    is_table = plain_name(path).suffix.lstrip(".") in FORMATS
    return read_columns(path, names)[0] if is_table else None


def _ending(path: Path) -> str:
    ending = plain_name(path).suffix.lstrip(".")
    return {"txt": "tsv"}.get(ending, ending)


def _refuse_missing(path: Path, name: str, column: list[Any], rows: Sequence[int]) -> None:
    for row, value in zip(rows, column, strict=True):
        if not isinstance(value, str | int | float) or value != value:
            raise InputError(
                f"{path} row {row}: column {name!r} holds {value!r}, not a text or number; "
                "fill it or remove the row."
            )
        if isinstance(value, str) and not _is_text(value):
            raise InputError(
                f"{path} row {row}: column {name!r} holds half a character (a lone surrogate); "
                "save the text again as UTF-8."
            )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_header(path: Path, names: Sequence[str], header: Sequence[str]) -> None:
    columns = f"(columns: {', '.join(map(str, header))})"
    problems = [f"no column {name!r} {columns}" for name in names if name not in header]
    problems += [f"column {name!r} occurs twice" for name in names if header.count(name) > 1]
    raise_all(str(path), problems)


def _delimited(path: Path, names: Sequence[str], *, delimiter: str, quoted: bool) -> _RawColumns:
    rows = read_rows(path, delimiter=delimiter, quoted=quoted)
    _, header = next(rows, (1, []))
    _check_header(path, names, header)
    positions = [header.index(name) for name in names]
    numbers, selected = [], []
    for number, fields in rows:
        check_width(path, number, fields, len(header))
        numbers.append(number)
        selected.append([fields[position] for position in positions])
    columns = {name: [fields[i] for fields in selected] for i, name in enumerate(names)}
    return columns, numbers


def _jsonl(path: Path, names: Sequence[str]) -> _RawColumns:
    numbers, records = [], []
    with open_text(path) as stream:
        for number, line in enumerate(lines(path, stream), start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = first_line(error)
                raise InputError(f"{path} row {number} is not JSON ({reason}); fix it.") from error
            numbers.append(number)
            records.append(record)
    return _objects(path, names, records, numbers)


def _json(path: Path, names: Sequence[str]) -> _RawColumns:
    records = read_json(path)
    if not isinstance(records, list):
        raise InputError(f"{path} is not a JSON array; write one object per example into an array.")
    return _objects(path, names, records, range(1, len(records) + 1))


def _objects(
    path: Path, names: Sequence[str], records: list[Any], numbers: Sequence[int]
) -> _RawColumns:
    for number, record in zip(numbers, records, strict=True):
        if not isinstance(record, dict):
            raise InputError(f"{path} row {number} is not a JSON object; write one per example.")
        _check_header(Path(f"{path} row {number}"), names, list(record))
    return {name: [record[name] for record in records] for name in names}, numbers


def _parquet(path: Path, names: Sequence[str]) -> _RawColumns:
    import pyarrow  # a dependency of datasets; only this format needs it
    import pyarrow.parquet

    check_regular_file(path)
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as stream:  # unpacked as it is read
            file = pyarrow.parquet.ParquetFile(stream)
            _check_header(path, names, file.schema_arrow.names)
            _check_unpacked(path, names, file.metadata)
            table = file.read(columns=list(names))
        return {name: table.column(name).to_pylist() for name in names}, range(1, len(table) + 1)
    # Besides errors of pyarrow: those of the system, and of malformed dates and texts in the file.
    except (pyarrow.ArrowException, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError,
            OverflowError, KeyError) as error:  # fmt: skip
        raise InputError(
            f"{path} is not a parquet file ({first_line(error)}); check it."
        ) from error


def _check_unpacked(path: Path, names: Sequence[str], metadata: Any) -> None:
    """Refuse a file that would take too much memory, before it is read."""
    if metadata.num_rows > MOST_ROWS:
        raise InputError(
            f"{path} declares {metadata.num_rows} rows, more than the {MOST_ROWS} that are read; "
            "split it."
        )
    total = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        parts = [c for c in columns if c.path_in_schema.split(".")[0] in names]
        total += sum(abs(c.total_uncompressed_size) for c in parts)
    if total > LARGEST_PARQUET:
        raise InputError(
            f"{path} declares {total} bytes in the columns {', '.join(names)}, more than the "
            f"{LARGEST_PARQUET} that are read; split it."
        )


def _csv(path: Path, names: Sequence[str]) -> _RawColumns:
    return _delimited(path, names, delimiter=",", quoted=True)


def _tsv(path: Path, names: Sequence[str]) -> _RawColumns:
    return _delimited(path, names, delimiter="\t", quoted=False)


_COLUMNS = {"csv": _csv, "tsv": _tsv, "jsonl": _jsonl, "json": _json, "parquet": _parquet}
