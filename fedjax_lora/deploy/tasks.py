"""The task of a federation: what all machines know of it, and each machine's own files."""

from collections.abc import Mapping

from fedjax_lora import data
from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError

COLUMNS: dict[str, tuple[str, ...]] = {
    "file": ("text", "label"),
    "instructions": ("instruction", "completion"),
}
"""The columns of each kind of task that a federation can have."""

SHARED = ("metric", "answer_tokens")
"""Options of a task that are the same on every machine, besides the prompt format."""


def shared(task: str) -> str:
    """The task without the names of files and columns, which are each machine's own.

    >>> shared("file(train='/home/me/a.csv', text='body', metric='f1')")
    "file(metric='f1')"

    Raises:
      InputError: a task that a federation cannot have.
    """
    name, options = registry.parse(task, "task")
    if name not in COLUMNS:
        raise InputError(
            f"A federation's task is {' or '.join(COLUMNS)}, with each machine's own files, not "
            f"{name!r}."
        )
    kept = SHARED if name == "file" else (*SHARED, "format")
    return written(name, {key: options[key] for key in options if key in kept})


def with_file(task: str, path: str, columns: Mapping[str, str]) -> str:
    """The task of one machine: its file, in which these columns have other names.

    >>> with_file("file(metric='f1')", "b.csv", {"text": "body", "label": "class"})
    "file(metric='f1', train='b.csv', test='b.csv', text='body', label='class')"

    Raises:
      InputError: columns that the task does not have.
    """
    name, options = registry.parse(task, "task")
    if wrong := sorted(set(columns) - set(COLUMNS[name])):
        raise InputError(
            f"The federation's task has no column {wrong[0]!r}; it has {', '.join(COLUMNS[name])}."
        )
    return written(name, {**options, "train": path, "test": path, **columns})


def is_language(task: str) -> bool:
    """Whether the task is one of texts that a model generates.

    Raises:
      InputError: its labels are scores, which a federation of real machines cannot have yet.
    """
    kind = data.find_task(with_file(task, "x", {})).type
    if kind == "regression":
        raise InputError("A federation of real machines has no scores as labels yet; give classes.")
    return kind == "language"


def written(name: str, options: Mapping[str, object]) -> str:
    """A task as text."""
    inside = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{name}({inside})" if inside else name
