"""Progress and results of a run on the terminal."""

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import Record
from fedjax_lora.core.safe_text import json_text, printable
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.data import prompts

if TYPE_CHECKING:
    from fedjax_lora import data


class _Terminal(Console):
    """A console that raises what `print` raises when the pipe that it writes to is closed."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console(*, quiet: bool = False, soft_wrap: bool = True) -> Console:
    """Return a console that prints text as it is: brackets in paths and names are no markup.

    Args:
      quiet: print nothing.
      soft_wrap: leave lines that are too long to the terminal; False fits tables into it.
    """
    return _Terminal(highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap, quiet=quiet)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of texts as they are."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    make_console(soft_wrap=False).print(table)


def plain(text: str) -> Text:
    """Return text for a status line, which would read brackets as markup on any console."""
    return Text(printable(text))


def write_output(file: pathlib.Path, text: str) -> None:
    """Write the output file of a command; it is there as a whole or not at all.

    Raises:
      InputError: it cannot be written.
    """
    try:
        atomic_io.write(file, text)
    except OSError as error:
        raise InputError(f"Output {file} cannot be written: {error.strerror}.") from error


class RoundsBar:
    """A progress bar over the rounds; it is shown while it is a context manager.

    It stands below what a console prints on a terminal. If that goes to a file, it is on standard
    error, if that is a terminal, and else nowhere.
    """

    def __init__(self, console: Console, rounds: int) -> None:
        """Prepare a bar over a number of rounds."""
        if not console.is_terminal:
            console = Console(stderr=True, quiet=console.quiet, highlight=False, markup=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            redirect_stdout=not console.stderr,
        )
        self._task = self._progress.add_task("loading", total=rounds, speed="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    @property
    def rounds(self) -> int:
        """Rounds that the bar has counted."""
        return int(self._progress.tasks[self._task].completed)

    def phase(self, name: str) -> None:
        """Show what is going on."""
        self._progress.update(self._task, description=name)

    def count(self, record: Record) -> None:
        """Count a round.

        Args:
          record: its numbers and times, as ``on_round`` of a run takes them.
        """
        speed = record["train_tokens"] / max(record["train_seconds"], 1e-9)
        self._progress.update(self._task, completed=record["round"], speed=f"{speed:,.0f} tokens/s")


def format_score(value: float | None) -> str:
    """Format a score; a model that has diverged has none."""
    return "not finite" if value is None else f"{value:.4f}"


def row_printer(console: Console, metric: str) -> Callable[[Record], None]:
    """Return a function that prints a round's record as a row, with a header before the first."""
    header = (
        f"{'round':>5}  {metric:>9}  {'test loss':>9}  {'train loss':>10}  "
        f"{'seconds':>7}  {'MB up':>8}  {'MB down':>8}"
    )

    def number(record: Record, name: str) -> str:
        return "-" if record.get(name) is None else f"{record[name]:.4f}"

    printed = []

    def print_row(record: Record) -> None:
        if not printed and record["round"] > 1:
            console.print(f"resumed after round {record['round'] - 1}")
        if not printed:
            console.print(header)
        printed.append(record["round"])
        seconds = record["train_seconds"] + record.get("eval_seconds", 0.0)
        console.print(
            f"{record['round']:>5}  {number(record, metric):>9}  {number(record, 'loss'):>9}  "
            f"{number(record, 'train_loss'):>10}  {seconds:>7.1f}  "
            f"{record['up_bytes'] / 1e6:>8.2f}  {record['down_bytes'] / 1e6:>8.2f}"
        )
        for event in ("dropped", "stragglers", "rejected", "silent"):
            if record.get(event):
                console.print(f"       {event}: clients {record[event]}")

    return print_row


def print_prompt_notes(console: Console, task: "data.Task", tokenizer: Tokenizer | None) -> None:
    """Say what the tokenizer's chat template does that other programs may do otherwise."""
    if task.type != "language" or tokenizer is None:
        return
    format = prompts.resolve(task.prompting.format, tokenizer)
    if prompts.prints_date(format, tokenizer):
        console.print(
            f"note: the chat template prints a date, {task.prompting.date} in all prompts "
            "(--chat-date)"
        )
    if beginnings := prompts.other_beginning(format, tokenizer):
        asked, before = (json_text(text[-30:]) for text in beginnings)
        console.print(
            f"note: the chat template asks for an answer with a prompt that ends with {asked}, and "
            f"writes answers behind {before}; here they are learned behind that prompt"
        )


def print_summary(console: Console, summary: Record, metric: str, out: pathlib.Path) -> None:
    """Print the scores of a finished run, and the folder of its results."""
    line = f"{metric} {format_score(summary[metric])}"
    if "majority_accuracy" in summary:
        line += f" (always the most frequent class: {format_score(summary['majority_accuracy'])})"
    if "positive_class" in summary:
        line += f" (of the class {printable(summary['positive_class'])})"
    if metric == "f1" and "macro_f1" in summary:
        line += " (macro: the mean over the classes)"
    if f"start_{metric}" in summary:
        line += f" (before training: {format_score(summary[f'start_{metric}'])})"
    console.print(f"{line} after {summary['rounds']} rounds in {summary['seconds']:.0f} s")
    if summary["train_test_overlap"]:
        console.print(f"note: {summary['train_test_overlap']} test texts also occur in training")
    if summary["skipped_examples"]:
        console.print(
            f"note: {summary['skipped_examples']} examples could not be used and are left out"
        )
    console.print(f"results in {out}")
