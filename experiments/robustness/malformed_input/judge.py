"""One command line on one spoiled run: how it ends, how long it takes and what memory."""

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
    """Everything was accepted: the run would begin."""


class Verdict(NamedTuple):
    """How a command line ended.

    Attributes:
      outcome: ``refused`` (status 2 and a sentence), ``accepted`` (the run would begin), or what
        else happened.
      sentence: the last line it printed as an error.
      lines: how many lines of errors it printed.
      left: whether there is an output folder.
      seconds: how long it took.
      megabytes: by how much the process grew at its largest.
    """

    outcome: str
    sentence: str
    lines: int
    left: bool
    seconds: float
    megabytes: float


def judge(words: list[str], out: pathlib.Path) -> Verdict:
    """Call the command line in this process, up to where a run writes its first file."""
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
    """Forget the largest size so far; the present one in megabytes."""
    (SELF / "clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    """The largest resident size since the last reset, in megabytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (SELF / "status").read_text())
    assert found is not None
    return int(found[1]) / 1e3
