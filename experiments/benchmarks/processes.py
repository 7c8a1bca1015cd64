"""Time and peak memory of a process with all its children."""

import pathlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import psutil

ROOT = pathlib.Path(__file__).parents[2]
PERIOD = 1.0  # seconds between two measurements of the memory


class ProcessResult(NamedTuple):
    """Time and peak memory of a process."""

    seconds: float
    peak_megabytes: float


def watch(
    command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path
) -> ProcessResult:
    """Run a command to its end in the root of the project.

    Args:
      command: program and arguments.
      environment: all of its environment variables.
      log: file for its output.

    Raises:
      SystemExit: the command failed.
    """
    began, peak = time.perf_counter(), 0
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            try:
                process.wait(PERIOD)
            except subprocess.TimeoutExpired:
                continue
    seconds = time.perf_counter() - began
    if process.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}:\n{end}")
    return ProcessResult(seconds, peak / 1e6)


def memory(pid: int) -> int:
    """Current memory of a process and its children in bytes (PSS: shared pages are divided)."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.NoSuchProcess:  # ended meanwhile
        pass
    return total
