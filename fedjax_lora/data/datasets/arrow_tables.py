"""Readers of tables of Apache Arrow: parquet, arrow and feather files, folders of `datasets`.

Files that `datasets` has written say which columns are class labels: their numbers are replaced by
the names. Files may come from outside: sizes are checked before memory is taken, equal texts of a
parquet file share their memory, and what an arrow file claims about its buffers is checked.
"""

import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.untrusted_files import check_regular_file, first_line
from fedjax_lora.data.datasets.delimited import Names, check_header, chosen
from fedjax_lora.data.datasets.text_files import (
    OPENERS,
    check_rows,
    check_text_size,
    largest_size,
    open_binary,
)

if TYPE_CHECKING:
    from datasets import Dataset

SAVED = ("dataset_info.json", "dataset_dict.json")
"""Files by which a folder of `datasets.Dataset.save_to_disk` and of `DatasetDict` is known."""


class ArrowColumns(NamedTuple):
    """Columns of a table.

    Attributes:
      values: the values of each column.
      classes: class names in label order, of the columns that are class labels.
    """

    values: dict[str, list[object]]
    classes: dict[str, tuple[str, ...]]


def read_parquet(path: Path, names: Names) -> ArrowColumns:
    """Read columns of a parquet file, plain or compressed.

    Raises:
      InputError: no such file or column, a damaged or too large file, a label without a name.
    """
    import pyarrow.parquet  # a dependency of datasets; only these formats need it

    def read(stream: Any) -> ArrowColumns:
        file = pyarrow.parquet.ParquetFile(stream)
        schema = file.schema_arrow
        wanted = list(chosen(names, schema.names))
        check_header(path, wanted, schema.names)
        check_rows(path, file.metadata.num_rows)
        flat = [name for name in wanted if not pyarrow.types.is_nested(schema.field(name).type)]
        shared = pyarrow.parquet.ParquetFile(stream, read_dictionary=flat)
        return _collect(path, wanted, schema, shared.iter_batches(columns=wanted))

    return _reading(path, "a parquet file", read)


def read_arrow(path: Path, names: Names) -> ArrowColumns:
    """Read columns of an arrow file (a stream or a file with a footer) or a feather file.

    Raises:
      InputError: as `read_parquet`.
    """
    import pyarrow
    import pyarrow.ipc

    def read(stream: Any) -> ArrowColumns:
        try:
            reader = pyarrow.ipc.open_stream(stream)
            batches = iter(reader)
        except pyarrow.ArrowInvalid:
            stream.seek(0)
            file = reader = pyarrow.ipc.open_file(stream)
            batches = (file.get_batch(n) for n in range(file.num_record_batches))
        wanted = chosen(names, reader.schema.names)
        check_header(path, wanted, reader.schema.names)
        return _collect(path, wanted, reader.schema, batches)

    return _reading(path, "an arrow file", read)


def read_saved(path: Path, names: Names) -> ArrowColumns:
    """Read columns of a folder that `datasets` has saved, of one data set without splits.

    Raises:
      InputError: as `read_parquet`, or the folder holds several splits.
    """
    import datasets  # slow to import; only this format needs it

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # it raises many unrelated types
        raise InputError(
            f"{path} is not a folder that datasets has saved ({first_line(error)}); check it."
        ) from error
    if isinstance(data, datasets.DatasetDict):
        raise InputError(
            f"{path} holds several splits ({', '.join(map(str, data))}); name the folder of one, "
            f"such as {path.name}/{next(iter(data), 'train')}."
        )
    return read_data_set(path, data, names)


def read_data_set(where: object, data: "Dataset", names: Names) -> ArrowColumns:
    """Read columns of a `datasets.Dataset`.

    Args:
      where: where it is from, for messages.
      data: the data set.
      names: the columns.

    Raises:
      InputError: no such column, too many rows or texts, a label without a name.
    """
    wanted = chosen(names, data.column_names)
    check_header(where, wanted, data.column_names)
    check_rows(where, len(data))
    if data._indices is not None:  # a selection, which early versions have saved too
        data = data.flatten_indices()
    table = data.data.table.select(list(wanted))
    return _collect(where, wanted, data.features.arrow_schema, table.to_batches())


def saved_splits(path: Path) -> tuple[str, ...] | None:
    """Return the splits of a folder that `datasets` has saved: none of a single data set.

    Returns:
      None if the path is no such folder.
    """
    if not any(os.path.isfile(path / name) for name in SAVED):
        return None
    try:
        content = json.loads((path / SAVED[1]).read_text(encoding="utf-8"))
        return tuple(map(str, content["splits"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _reading(path: Path, kind: str, read: Callable[[Any], ArrowColumns]) -> ArrowColumns:
    """Call a reader on a file; what goes wrong in it becomes one sentence."""
    import pyarrow

    check_regular_file(path)
    try:
        if path.suffix.lower() in OPENERS:
            with open_binary(path) as packed:
                return read(io.BytesIO(packed.read()))
        with open(path, "rb") as stream:
            return read(stream)
    # Besides errors of pyarrow: those of the system, and of malformed dates and texts in the file.
    except (pyarrow.ArrowException, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError,
            OverflowError, KeyError) as error:  # fmt: skip
        message = f"{path} is not {kind} ({first_line(error)}); check it."
        raise InputError(message) from error


def _collect(
    where: Any, names: Sequence[str], schema: Any, batches: Iterator[Any] | Sequence[Any]
) -> ArrowColumns:
    """Gather the columns of record batches, with names in the place of class labels."""
    classes = {name: found for name, found in _class_names(schema).items() if name in names}
    values: dict[str, list[object]] = {name: [] for name in names}
    size, most = 0, largest_size(where)
    for batch in batches:
        batch.validate(full=True)
        for name in names:
            part = _values(batch.column(name))
            # Equal texts share their memory here, and no longer once they are tokens.
            size += sum(map(_text_size, part))
            check_text_size(where, size, most)
            values[name] += part
        check_rows(where, len(values[names[0]]))
    for name, labels in classes.items():
        values[name] = _named(where, name, values[name], labels)
    return ArrowColumns(values, classes)


def _text_size(value: Any) -> int:
    """Count the characters of a value, in lists and structures too."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_text_size, value)) if isinstance(value, list) else 0


def _values(array: Any) -> list[Any]:
    """Convert an array to Python values; equal values of a dictionary are one object."""
    import pyarrow

    if not pyarrow.types.is_dictionary(array.type):
        return array.to_pylist()
    dictionary = array.dictionary.to_pylist()
    return [None if i is None else dictionary[i] for i in array.indices.to_pylist()]


def _class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of class labels, by column, that `datasets` has written into a schema."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {
            str(column): tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _named(path: Any, column: str, codes: list[Any], names: tuple[str, ...]) -> list[Any]:
    """Replace the numbers of classes by their names; a missing value stays.

    Raises:
      InputError: a number without a name; -1 stands for an unlabelled example.
    """
    for row, code in enumerate(codes, start=1):
        if code is not None and not (isinstance(code, int) and 0 <= code < len(names)):
            meaning = " (unlabelled)" if code == -1 else ""
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise InputError(
                f"{path} row {row}: the label {code!r}{meaning} in column {column!r} is not one of "
                f"the {len(names)} classes ({shown}); correct it or remove the row."
            )
    return [None if code is None else names[code] for code in codes]
