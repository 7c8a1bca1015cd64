"""Operations on tables: rows of one, several after one another, and a test set drawn from one."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_lora.data.datasets.records import Table

CUT_SEED = 0  # draws the test set of data that has none, whatever the run's seed
TEST_SHARE = 0.2

COLUMNS = (
    "texts", "labels", "rows", "pairs", "groups", "contexts", "choices", "sources",
    "turns",
)  # fmt: skip
"""Fields of a table with a value for each row."""


def take_rows(table: Table, index: np.ndarray) -> Table:
    """Select the rows with indices ``int[E']``, in that order."""
    columns = {
        name: [column[i] for i in index]
        for name in COLUMNS
        if (column := getattr(table, name)) is not None
    }
    return table._replace(**columns)


def cut(table: Table) -> tuple[Table, Table]:
    """Split a table into training and test set, with `CUT_SEED`."""
    size = len(table.texts)
    order = np.random.default_rng(CUT_SEED).permutation(size)
    end = round(TEST_SHARE * size)
    test, train = (take_rows(table, np.sort(part)) for part in (order[:end], order[end:]))
    return train, test._replace(skipped=0)


def concatenate(where: str, parts: Sequence[Table]) -> Table:
    """Put tables with the same columns after one another; rows keep their file and number.

    Args:
      where: name of the whole.
      parts: the tables; class names are those of the first.
    """
    values = {name: _column(name, parts) for name in COLUMNS}
    values["sources"] = [part.where for part in parts for _ in part.texts]
    skipped = sum(part.skipped for part in parts)
    return parts[0]._replace(where=where, **values, skipped=skipped)


def _column(name: str, parts: Sequence[Table]) -> list[Any] | None:
    columns = [getattr(part, name) for part in parts]
    return None if any(x is None for x in columns) else [x for xs in columns for x in xs]
