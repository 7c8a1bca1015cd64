"""Brackets in paths and names are printed as they are."""

import io
import pathlib

import pytest
from rich.console import Console

from fedjax_lora.cli import terminal

NAMES = ["par[0.01]/r", "runs/[/x]", "[bold]b", "[red", "a[/]", ":smile:", r"\[x]"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_printed_as_it_is(name, capsys):
    console = terminal.make_console()
    summary = {"accuracy": 0.5, "rounds": 1, "seconds": 1.0, "train_test_overlap": 0}
    summary["skipped_examples"] = 0
    terminal.print_summary(console, summary, "accuracy", pathlib.Path(name))
    console.print(f"{name}: row")
    assert capsys.readouterr().out.endswith(f"results in {name}\n{name}: row\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_status_line_shows_a_name_as_it_is(name):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with console.status("loading") as status:
        status.update(terminal.plain(name))
        status.refresh = None
        console.print(status.renderable)
    assert name in console.file.getvalue()


def test_a_closed_pipe_is_the_error_that_the_command_line_answers():
    """Rich would end the program with status 1."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    console = terminal.make_console()
    console.file = Closed()
    with pytest.raises(BrokenPipeError):
        console.print("x")
