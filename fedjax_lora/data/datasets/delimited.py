"""Readers of delimited text: csv and tsv files.

They are read with the standard library's `csv` and not with the `csv` builder of `datasets`: the
builder (pandas) turns the texts "NA" and "null" into missing values, pads short rows silently, and
does not report the row in which a file is malformed.
"""

import codecs
import csv
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets.text_files import (
    LONGEST_LINE,
    check_rows,
    check_size,
    lines,
    open_text,
)

DELIMITERS = {"csv": ",", "tsv": "\t"}

Names = Sequence[str] | Callable[[Sequence[str]], Sequence[str]]
"""Columns that are read: their names, or a choice among those that a file has."""


class Missing(NamedTuple):
    """Columns that rows may lack.

    Attributes:
      absent: of those that are asked for; a file in which no row has one is refused.
      optional: that are read where a file has them.
    """

    absent: Collection[str] = ()
    optional: Collection[str] = ()

    def needs(self, name: str) -> bool:
        """Whether every row must have a column."""
        return name not in self.absent and name not in self.optional

    def with_optional(self, names: "Names") -> "Names":
        """Return a choice of columns that also takes those which are optional."""
        if not self.optional:
            return names

        def choose(header: Sequence[str]) -> list[str]:
            return [*chosen(names, header), *(name for name in self.optional if name in header)]

        return choose


def chosen(names: Names, header: Sequence[str]) -> Sequence[str]:
    """Return the names of the columns that are read of a file with these columns."""
    return names(header) if callable(names) else names


class Layout(NamedTuple):
    """How a csv or tsv file is written, where it is not as usual.

    Attributes:
      delimiter: one character between the fields; a comma in csv and a tab in tsv if None.
      header: whether the first row names the columns; otherwise they are named 1, 2, ...
      encoding: a text encoding of Python; UTF-8 with or without BOM if None.
    """

    delimiter: str | None = None
    header: bool = True
    encoding: str | None = None

    def check(self) -> None:
        """Check the options.

        Raises:
          InputError: a delimiter that is no single character, or an unknown encoding.
        """
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '\r\n"'):
            raise InputError(
                f"The delimiter is {self.delimiter!r}; give one character, such as ';' or '\\t'."
            )
        try:
            is_text = self.encoding is None or codecs.lookup(self.encoding)._is_text_encoding
        except (LookupError, ValueError):
            is_text = False
        if not is_text:
            raise InputError(
                f"Unknown encoding {self.encoding!r}; give one that Python knows, such as "
                "'cp1252', 'latin-1' or 'utf-16'."
            )


USUAL = Layout()


def read_delimited(
    path: Path, names: Names, *, format: str, layout: Layout
) -> tuple[dict[str, list[str]], list[int]]:
    """Read columns of a csv or tsv file, and the number of each row.

    Args:
      path: the file.
      names: the columns.
      format: `"csv"`, whose fields may be in double quotes, or `"tsv"`, where quotes are text (as
        in GLUE).
      layout: how the file is written.

    Raises:
      InputError: no such file or column; a malformed row.
    """
    delimiter = layout.delimiter or DELIMITERS[format]
    quoted = format == "csv"
    rows = read_rows(path, delimiter=delimiter, quoted=quoted, encoding=layout.encoding)
    header, data = _split_header(rows, layout)
    names = chosen(names, header)
    check_header(path, names, header, hint=_hint(header, delimiter))
    positions = [header.index(name) for name in names]
    numbers: list[int] = []
    columns: list[list[str]] = [[] for _ in names]
    for number, fields in data:
        check_width(path, number, fields, len(header))
        numbers.append(number)
        check_rows(path, len(numbers))
        for column, position in zip(columns, positions, strict=True):
            column.append(fields[position])
    return dict(zip(names, columns, strict=True)), numbers


Rows = Iterator[tuple[int, list[str]]]


def _split_header(rows: Rows, layout: Layout) -> tuple[list[str], Rows]:
    """Return the names of the columns and the rows below them."""
    first = next(rows, None)
    if first is None:
        return [], rows
    if layout.header:
        return first[1], rows
    return [str(n + 1) for n in range(len(first[1]))], itertools.chain([first], rows)


def _hint(header: Sequence[str], delimiter: str) -> str:
    """Say which other delimiter a header with a single column seems to have."""
    if len(header) != 1:
        return ""
    others = [c for c in (",", ";", "\t", "|") if c != delimiter and c in header[0]]
    return f"; delimiter={others[0]!r} may be meant" if others else ""


def read_rows(
    path: Path, *, delimiter: str, quoted: bool, encoding: str | None = None
) -> Iterator[tuple[int, list[str]]]:
    r"""Yield (row number, fields) of a delimited file; blank lines are counted but not yielded.

    Args:
      path: the file.
      delimiter: one character.
      quoted: whether double quotes enclose fields; otherwise they are text.
      encoding: of the file; UTF-8 with or without BOM if None.

    Raises:
      InputError: during iteration: the file is missing, too large or not of its encoding, a line is
        too long, or quotes are malformed.
    """
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    # The module's own limit, 131,072 characters, refuses long texts.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    row = 0
    check_size(path)
    with open_text(path, encoding=encoding or "utf-8-sig") as stream:
        try:
            for row, fields in enumerate(
                csv.reader(lines(path, stream), delimiter=delimiter, quoting=quoting, strict=True),
                start=1,
            ):
                if fields:
                    yield row, fields
        except csv.Error as error:
            if "field limit" in str(error):
                raise InputError(
                    f"{path} row {row + 1} has a field of more than {LONGEST_LINE} characters; "
                    "shorten it, or check whether a quote is missing."
                ) from error
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


CONVERSATIONS = ("conversations", "messages")


def check_header(
    where: object, names: Sequence[str], header: Sequence[str], hint: str = ""
) -> None:
    """Check that columns exist, once each.

    Args:
      where: the file, for the message.
      names: the columns that are read.
      header: the columns of the file.
      hint: what may be wrong if a column is missing.

    Raises:
      InputError: a column is missing or occurs twice.
    """
    missing = [name for name in names if name not in header]
    problems = [f"no column {name!r}" for name in missing]
    problems += [f"column {name!r} occurs twice" for name in names if header.count(name) > 1]
    if problems:
        shown = f"{', '.join(map(str, header[:20]))}{', ...' * (len(header) > 20)}"
        hint = _conversations(header) if missing and _conversations(header) else hint
        raise InputError(f"{where}: {'; '.join(problems)} (columns: {shown}){hint}.")


def _conversations(header: Sequence[str]) -> str:
    """Say that a file holds conversations, if it does."""
    found = [name for name in CONVERSATIONS if name in header]
    if not found:
        return ""
    return f"; the conversations in {found[0]!r} are the task conversations(train='...')"
