"""Brackets in paths and names are printed as they are."""

import io
import pathlib
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedjax_lora.cli import terminal
from tests._helpers.character_tokenizer import make_tokenizer

NAMES = ["par[0.01]/r", "runs/[/x]", "[bold]b", "[red", "a[/]", ":smile:", r"\[x]"]


@pytest.mark.parametrize("name", NAMES)
def test_path_is_printed_without_markup(name, capsys):
    console = terminal.make_console()
    summary = {"accuracy": 0.5, "rounds": 1, "seconds": 1.0, "train_test_overlap": 0}
    summary["skipped_examples"] = 0
    terminal.print_summary(console, summary, "accuracy", pathlib.Path(name))
    console.print(f"{name}: row")
    assert capsys.readouterr().out.endswith(f"results in {name}\n{name}: row\n")


def test_summary_reports_skipped_examples_and_the_starting_score(capsys):
    summary = {"perplexity": 2.0, "start_perplexity": 3.0, "rounds": 1, "seconds": 1.0}
    summary |= {"train_test_overlap": 0, "skipped_examples": 2}
    terminal.print_summary(terminal.make_console(), summary, "perplexity", pathlib.Path("out"))
    printed = capsys.readouterr().out
    assert "2 examples could not be used" in printed and "(before training: 3." in printed


@pytest.mark.parametrize("name", NAMES)
def test_status_line_prints_names_without_markup(name):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    with console.status("loading") as status:
        status.update(terminal.plain(name))
        status.refresh = None
        console.print(status.renderable)
    assert name in console.file.getvalue()


def test_chat_template_with_a_different_generation_prompt_is_noted(capsys):
    made = make_tokenizer()
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: <think>\\n' }}{% endif %}"
    )
    prompting = SimpleNamespace(format="auto", date="2024-07-26")
    task = SimpleNamespace(type="language", prompting=prompting)
    terminal.print_prompt_notes(terminal.make_console(), task, made)
    assert capsys.readouterr().out == (
        r"note: the chat template asks for an answer with a prompt that ends with "
        r'"user: a\nassistant: <think>\n", and writes answers behind "user: a\nassistant: "; here '
        "they are learned behind that prompt\n"
    )
    terminal.print_prompt_notes(terminal.make_console(), SimpleNamespace(type="pairs"), made)
    assert capsys.readouterr().out == ""


def test_closed_pipe_raises_broken_pipe_error():
    """Rich would end the program with status 1."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    console = terminal.make_console()
    console.file = Closed()
    with pytest.raises(BrokenPipeError):
        console.print("x")


RECORD = {"round": 3, "train_seconds": 0.5, "train_tokens": 1234}


def rounds_bar(monkeypatch, *, terminals):
    """A console, a bar over five rounds, and what is written to the streams of these names."""
    streams = {name: io.StringIO() for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        stream.isatty = lambda name=name: name in terminals
        monkeypatch.setattr(f"sys.{name}", stream)
    monkeypatch.setenv("TERM", "xterm")
    console = terminal.make_console()
    with terminal.RoundsBar(console, 5) as bar:
        bar.phase("round [3]")
        bar.count(RECORD)
        console.print("a row")
    assert bar.rounds == 3
    return [stream.getvalue() for stream in streams.values()]


SHOWN = ("loading", "round [3]", "3/5", "2,468 tokens/s")


def test_terminal_shows_phase_rounds_and_speed_below_the_rows(monkeypatch):
    out, err = rounds_bar(monkeypatch, terminals=("stdout", "stderr"))
    assert all(text in out for text in (*SHOWN, "a row"))
    assert err == ""


def test_if_rows_go_to_a_file_the_progress_bar_is_on_standard_error(monkeypatch):
    out, err = rounds_bar(monkeypatch, terminals=("stderr",))
    assert out == "a row\n"
    assert all(text in err for text in SHOWN)


def test_without_a_terminal_only_rows_are_written(monkeypatch):
    assert rounds_bar(monkeypatch, terminals=()) == ["a row\n", ""]
