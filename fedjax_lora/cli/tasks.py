"""``fedjax-lora tasks``: list the tasks, or show a task's options and three of its examples."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import tyro

from fedjax_lora.cli.terminal import print_table
from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.core.safe_text import printable

if TYPE_CHECKING:
    from fedjax_lora import data
    from fedjax_lora.data.turns import Turn

SHOWN = 3
"""Examples that are shown of a task."""

LONGEST = 300
"""Characters that are shown of a text."""

OWN: Mapping[str, tuple[str, str, str]] = {
    "file": (
        "file(train='a.csv', test='b.csv', text='review', label='stars')",
        "file(train='clients/*.jsonl', client_files=True, metric='macro_f1')",
        "file(hub='org/name', text='sentence1', pair='sentence2', metric='pearson')",
    ),
    "instructions": (
        "instructions(train='a.jsonl', instruction='question', completion='answer')",
        "instructions(train='alpaca_data.json', completion='output', context='input')",
        "instructions(train='a.parquet', instruction='prompt', format='raw')",
    ),
    "conversations": (
        "conversations(train='sharegpt.json', format='plain')",
        "conversations(train='clients/*.jsonl', client_files=True, learn='last')",
        "conversations(hub='org/name', messages='messages', metric='rouge_l')",
    ),
    "text": (
        "text(train='a.jsonl', text='text')",
        "text(train='books/*.txt', unit='paragraph', client_files=True)",
        "text(hub='org/name', config='en')",
    ),
}
"""Tasks of the user's own data, with examples of what they are written like."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TasksOptions:
    """List the tasks that have a name, or show one: its options and three of its examples."""

    task: tyro.conf.Positional[str | None] = None
    """Task to show: a name, or a name with options as for --task, file(train='a.csv')."""
    data_dir: str | None = None
    """Folder with the task's files; without it they come from the Hugging Face hub."""


def main(args: Sequence[str]) -> None:
    """List the tasks, or show one.

    Raises:
      InputError: an unknown task or option.
    """
    options = tyro.cli(TasksOptions, args=args, prog="fedjax-lora tasks")
    if options.task is None:
        _list()
    else:
        _show(options.task, options.data_dir)


def _list() -> None:
    from fedjax_lora.data import TASKS

    rows = [(name, t.summary, t.metric, t.url) for name, t in TASKS.items()]
    rows += [(f"{name}(...)", "your own data; see its options", "", "") for name in OWN]
    print_table("Tasks", ("name", "what", "metric", "source"), rows)
    print("fedjax-lora tasks NAME shows the options of a task and three of its examples.")


def _show(spec: str, data_dir: str | None) -> None:
    from fedjax_lora.data.datasets.registry import factories

    known = factories()
    name, given = registry.parse(spec, "task")
    if name not in known:
        raise unknown("task", name, known)
    found = registry.options(known[name])
    if found:
        rows = [(x.name, x.values, x.default or "(needed)", x.meaning) for x in found]
        print_table(f"Options of {name}(...)", ("option", "values", "default", "meaning"), rows)
    if name in OWN and not given:
        print("Examples of the task:", *OWN[name], sep="\n  ")
        return
    for line in _described(spec, data_dir):
        print(printable(line))


def _described(spec: str, data_dir: str | None) -> Iterator[str]:
    """Yield lines about a task and its first training examples."""
    from fedjax_lora import data

    task = data.find_task(spec)
    yield f"{task.name}: {task.summary}"
    yield f"metric: {task.metric}" + (f"; source: {task.url}" if task.url else "")
    try:
        loaded = data.load(spec, data_dir=data_dir)
    except InputError as error:
        yield f"No examples are shown: {error}"
        return
    if loaded.classes:
        shown = ", ".join(loaded.classes[:20]) + (", ..." if len(loaded.classes) > 20 else "")
        kind = "categories" if task.type == "language" else "classes"
        yield f"{len(loaded.classes)} {kind}: {shown}"
    if loaded.groups:
        yield f"{len(loaded.groups)} natural clients"
    yield f"{len(loaded.train.texts)} training and {len(loaded.test.texts)} test examples, such as"
    for number in range(min(SHOWN, len(loaded.train.texts))):
        yield f"  {number + 1}."
        yield from (f"    {name}: {_short(text)}" for name, text in _fields(loaded, number))


def _fields(loaded: "data.TaskData", number: int) -> Iterator[tuple[str, str]]:
    """Yield the fields of a training example by name."""
    split, kind = loaded.train, loaded.task.type
    if split.turns is not None:
        yield from map(_spoken, split.turns[number])
        return
    language = kind == "language" and split.pairs is not None
    yield "instruction" if language else "text", split.texts[number]
    if split.contexts is not None and split.contexts[number]:
        yield "context", split.contexts[number]
    if split.pairs is not None:
        yield "completion" if language else "second text", split.pairs[number]
    if kind != "language":
        label = split.labels[number]
        yield "label", loaded.classes[label] if loaded.classes else str(label)


def _spoken(turn: "Turn") -> tuple[str, str]:
    return turn.role + (" (learned)" if turn.learned else ""), turn.text


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
