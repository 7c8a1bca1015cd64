"""Readers of official task files that plain named columns cannot describe.

Each reader takes a path and returns a `Table`. Where a task's file exists in several formats (the
full official one, a common sample), the reader distinguishes them by the number of columns.
"""

from pathlib import Path

from fedjax_lora.core.errors import InputError
from fedjax_lora.data.datasets.delimited import check_width, read_rows
from fedjax_lora.data.datasets.records import Table


def read_ag_news(path: Path) -> Table:
    """Read AG News: class (1-4), title, description; quoted, without header.

    The text is "title description", as in the hub's `ag_news`. Backslashes that stand for line ends
    are kept, as on the hub.
    """
    rows, labels, texts = [], [], []
    for row, fields in read_rows(path, delimiter=",", quoted=True):
        check_width(path, row, fields, 3)
        rows.append(row)
        labels.append(_integer(path, row, fields[0]) - 1)
        texts.append(f"{fields[1]} {fields[2]}")
    return Table(str(path), texts, labels, rows)


def read_dbpedia(path: Path) -> Table:
    """Read DBpedia-14: class (1-14), title, abstract; or a sample of class (0-13), abstract.

    The text is the abstract alone, as in the hub's `content`; the sample has no titles.
    """
    rows, labels, texts, width = [], [], [], 0
    for row, fields in read_rows(path, delimiter=",", quoted=True):
        width = width or (3 if len(fields) == 3 else 2)
        check_width(path, row, fields, width)
        rows.append(row)
        labels.append(_integer(path, row, fields[0]) - (width == 3))
        texts.append(fields[-1].strip())
    return Table(str(path), texts, labels, rows)


def read_cola(path: Path) -> Table:
    """Read CoLA, tab-separated and without a header.

    The columns are source, label, the author's mark and sentence (as GLUE has them), or sentence
    and label (a common sample of the tokenised form).
    """
    rows, labels, texts, width = [], [], [], 0
    for row, fields in read_rows(path, delimiter="\t", quoted=False):
        width = width or (2 if len(fields) == 2 else 4)
        check_width(path, row, fields, width)
        rows.append(row)
        labels.append(fields[1])
        texts.append(fields[3] if width == 4 else fields[0])
    return Table(str(path), texts, labels, rows)


def read_qqp(path: Path) -> Table:
    """Read QQP: id, qid1, qid2, question1, question2, is_duplicate; tab-separated.

    The header is optional. GLUE's file has rows in which the last tab is missing
    ("... exam jlpt5? 0"). They are skipped, as in GLUE's own reader, and counted in
    `Table.skipped`; any other width is an error.
    """
    rows, labels, texts, pairs, skipped = [], [], [], [], 0
    for row, fields in read_rows(path, delimiter="\t", quoted=False):
        if row == 1 and fields[0] == "id":
            continue
        if len(fields) == 5 and fields[4].endswith((" 0", " 1")):
            skipped += 1
            continue
        check_width(path, row, fields, 6)
        rows.append(row)
        labels.append(fields[5])
        texts.append(fields[3])
        pairs.append(fields[4])
    return Table(str(path), texts, labels, rows, pairs=pairs, skipped=skipped)


def _integer(path: Path, row: int, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            f"{path} row {row}: the class is {text!r}, not a number; is this the official file?"
        ) from error
