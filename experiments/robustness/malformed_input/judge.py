"""Run the command line on one case; outcome, time and memory."""

import contextlib
import io
import pathlib
import re
import time
from typing import NamedTuple
from unittest import mock

from fedjax_lora.cli import main
from fedjax_lora.runs.folder import RunFolder

SELF = pathlib.Path("/proc/self")


class Started(Exception):
    """Raised when the input was accepted and the run would start."""


class Verdict(NamedTuple):
    """Result of a command.

    Attributes:
      outcome: ``refused`` (status 2 and a sentence), ``accepted`` (the run would start), or
        another description.
      sentence: last line of the error output.
      lines: number of lines of the error output.
      left: whether an output folder exists.
      seconds: duration.
      megabytes: growth of the peak memory of the process.
    """

    outcome: str
    sentence: str
    lines: int
    left: bool
    seconds: float
    megabytes: float


def judge(words: list[str], out: pathlib.Path) -> Verdict:
    """Call the command line in this process until a run would write its first file."""
    errors = io.StringIO()
    before, began = _reset_peak(), time.perf_counter()
    with (
        mock.patch.object(RunFolder, "start", _begin),
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            status = main.main([*words, f"--out={out}"])
            outcome = "refused" if status == 2 else f"status {status}"
        except Started:
            outcome = "accepted"
        except SystemExit as stopped:
            outcome = f"exit {stopped.code}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {str(error)[:200]}"
    seconds, lines = time.perf_counter() - began, errors.getvalue().splitlines()
    ours = bool(lines) and lines[-1].startswith("fedjax-lora: ")
    if outcome == "refused" and not ours:
        outcome = "refused without a sentence"
    sentence = lines[-1] if lines else ""
    return Verdict(outcome, sentence, len(lines), out.exists(), seconds, _peak() - before)


def _begin(folder: RunFolder, *_: object) -> None:
    raise Started


def _reset_peak() -> float:
    """Reset the peak memory; returns the present size in MB."""
    (SELF / "clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    """Peak resident size since the last reset in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (SELF / "status").read_text())
    assert found is not None
    return int(found[1]) / 1e3
