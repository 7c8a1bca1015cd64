"""Readers of instruction data: named columns, and the official formats of some data sets.

In the table of a language task `texts` are the instructions, `contexts` the texts they are about,
`pairs` the completions, and `labels` the categories, which partitioners by label use. Data without
categories has the single category `ALL`; a label skew is then a quantity skew.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.data.datasets.delimited import USUAL, Layout
from fedjax_lora.data.datasets.records import Table
from fedjax_lora.data.datasets.table_readers import Source, check_values, read_columns
from fedjax_lora.data.datasets.tables import concatenate
from fedjax_lora.data.datasets.text_files import open_text, read_json

if TYPE_CHECKING:
    from datasets import Dataset

ALL = "all"
PER_TASK = 100
"""Examples used of each natural-instructions task, as in Tk-Instruct."""

LETTERS: tuple[str, ...] = ("A", "B", "C", "D")


class Columns(NamedTuple):
    """Column names of instruction data; None for a column that the data does not have."""

    instruction: str
    completion: str
    context: str | None = None
    category: str | None = None
    group: str | None = None


DOLLY = Columns("instruction", "response", "context", "category", "category")
ALPACA = Columns("instruction", "output", "input")
GSM8K = Columns("question", "answer")
NATURAL_HUB = Columns("definition", "targets", "inputs", group="task_name")


def read_instructions(
    path: Source, columns: Columns, *, format: str | None = None, layout: Layout = USUAL
) -> Table:
    """Read a file with these columns, see `table_readers.read_columns`.

    A context may be null or left out, and is then empty. Instructions and completions may be empty
    texts: examples without a completion are counted as skipped when they are tokenised.
    """
    values, rows, _, clients = read_columns(
        path,
        _names(columns),
        format=format,
        layout=layout,
        blank=_texts(columns),
        absent=_contexts(columns),
    )
    table = _table(str(path), columns, values, rows)
    return table if clients is None or columns.group else table._replace(groups=clients)


def hub_instructions(columns: Columns, where: str, part: "Dataset") -> Table:
    """Read a split of a hub dataset with these columns."""
    names = _names(columns)
    raise_all(where, [f"no column {name!r}" for name in names if name not in part.column_names])
    values, rows = {name: list(part[name]) for name in names}, range(1, len(part) + 1)
    for name in _contexts(columns):
        values[name] = ["" if value is None else value for value in values[name]]
    for name, column in values.items():
        check_values(where, name, column, rows, blank=name in _texts(columns))
    return _table(where, columns, values, rows)


def _names(columns: Columns) -> list[str]:
    return list(dict.fromkeys(name for name in columns if name is not None))


def _texts(columns: Columns) -> list[str]:
    return [columns.instruction, columns.completion, *_contexts(columns)]


def _contexts(columns: Columns) -> list[str]:
    return [] if columns.context is None else [columns.context]


def _table(
    where: str, columns: Columns, values: Mapping[str, list[Any]], rows: Sequence[int]
) -> Table:
    size = len(values[columns.instruction])

    def texts(name: str | None, default: str = "") -> list[str]:
        return [default] * size if name is None else [str(value) for value in values[name]]

    return Table(
        where,
        texts=texts(columns.instruction),
        labels=texts(columns.category, ALL),
        rows=rows,
        pairs=texts(columns.completion),
        groups=None if columns.group is None else texts(columns.group),
        contexts=texts(columns.context),
    )


def read_dolly_alpaca(folder: Path) -> tuple[Table, Table]:
    """Read Dolly and Alpaca as FederatedGPT-Shepherd's script splits them: one file per client.

    The natural clients are the numbers of the `local_training_*.json` files that are present; the
    test rows belong to no client.

    Raises:
      InputError: files are missing or malformed.
    """
    files = {
        match[1]: path
        for path in folder.iterdir()
        if (match := re.fullmatch(r"local_training_(\d+)\.json(\.gz)?", path.name))
    }
    tests = [p for end in ("", ".gz") if (p := folder / f"global_test.json{end}").is_file()]
    if not files or not tests:
        raise InputError(
            f"{folder} lacks {'global_test.json' if files else 'local_training_0.json, ...'}; "
            "put the files of one split there, or check --data-dir."
        )
    columns = DOLLY._replace(group=None)
    parts = []
    for client in sorted(files, key=int):
        table = read_instructions(files[client], columns)
        parts.append(table._replace(groups=[client] * len(table.texts)))
    return concatenate(str(folder), parts), read_instructions(tests[0], columns)


def read_natural_instructions(folder: Path) -> tuple[Table, Table | None]:
    """Read Super-Natural-Instructions: `tasks/*.json`, `splits/default/{train,test}_tasks.txt`.

    Each task file is a natural client, and its first `Categories` entry is its category. The first
    `PER_TASK` instances of a task are used, each with its first output; the others are not counted
    as skipped. Without the split files a fifth of all instances becomes the test set.

    Raises:
      InputError: no task files, a malformed one, or a split file that is not UTF-8.
    """
    files = {
        path.name.split(".json")[0]: path for path in sorted((folder / "tasks").glob("*.json*"))
    }
    if not files:
        raise InputError(f"{folder} has no tasks/*.json; put the task files there.")
    folds = folder / "splits" / "default"
    splits = [_read_names(folds / f"{part}_tasks.txt") for part in ("train", "test")]
    if not all(splits):
        return concatenate(str(folder), [_read_natural(name, files[name]) for name in files]), None
    train, test = (
        concatenate(str(folder), [_read_natural(n, files[n]) for n in names if n in files])
        for names in splits
    )
    return train, test


def _read_names(path: Path) -> list[str]:
    """Read the names in a file; an empty list if it does not exist."""
    if not path.is_file():
        return []
    with open_text(path) as stream:
        return stream.read().split()


def _read_natural(name: str, path: Path) -> Table:
    try:
        task = read_json(path)
        used = task["Instances"][:PER_TASK]
        definition, category = str(task["Definition"][0]), str(task["Categories"][0])
        inputs, outputs = [str(x["input"]) for x in used], [str(x["output"][0]) for x in used]
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{path} is not a natural-instructions task ({type(error).__name__}: {error}); it "
            "needs Definition, Categories and Instances with input and output."
        ) from error
    count = len(used)
    return Table(
        str(path), [definition] * count, [category] * count, range(1, count + 1), outputs,
        [name] * count, contexts=inputs,
    )  # fmt: skip


def read_mmlu_1444(path: Path) -> Table:
    """Read the MMLU subset that FLoRA evaluates on, with the four options in the text.

    The completion is the letter of the right option; subjects are both the categories and the
    natural clients.

    Raises:
      InputError: the file cannot be read, lacks a column or a value, or an output is no answer.
    """
    columns = Columns("instruction", "output", "input", "class", "class")
    table = read_instructions(path, columns, format="json")
    assert table.pairs is not None
    letters = []
    for row, text in zip(table.rows, table.pairs, strict=True):
        answer = re.match(r"The answer is: ([A-D])\.", text)
        if answer is None:
            raise InputError(
                f"{path} row {row}: the output is {text!r}, not 'The answer is: A. ...'."
            )
        letters.append(answer[1])
    return table._replace(pairs=letters, choices=[LETTERS] * len(letters))


def hub_mmlu(where: str, part: "Dataset") -> Table:
    """Read MMLU from the hub: lettered options below the question, the letter as completion."""
    rows = cast(Iterable[Mapping[str, Any]], part)
    texts = [
        "\n".join([row["question"], *map("{}. {}".format, LETTERS, row["choices"])]) for row in rows
    ]
    subjects = [str(row["subject"]) for row in rows]
    return Table(
        where,
        texts=["Answer the multiple-choice question with the letter of the right option."]
        * len(texts),
        labels=subjects,
        rows=range(1, len(texts) + 1),
        pairs=[LETTERS[row["answer"]] for row in rows],
        groups=subjects,
        contexts=texts,
        choices=[LETTERS] * len(texts),
    )
