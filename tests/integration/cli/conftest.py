"""One finished run, shared by all tests of the command line."""

import contextlib
import io
import pathlib
from typing import NamedTuple

import pytest

from fedjax_lora.cli import main
from tests._helpers.small_options import small


class Finished(NamedTuple):
    """The folder of a run and what the command printed."""

    out: pathlib.Path
    printed: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of `small` options. Tests that write to the folder copy it first."""
    out = tmp_path_factory.mktemp("runs") / "a run"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main.main(["run", *small(), f"--out={out}"]) == 0
    return Finished(out, printed.getvalue())
