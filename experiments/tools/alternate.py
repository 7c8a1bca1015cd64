"""Benchmark processes that take turns: one process per contender, one of them active at a time."""

import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


def serve(ready: Any, handle: Callable[[str], Any]) -> None:
    """Serve requests from standard input; replies are JSON lines on standard output.

    Args:
      ready: the first reply, sent before any request.
      handle: processes a request (one line of text) and returns the reply.
    """
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(handle(line.strip())), flush=True)


class Worker:
    """A child process that runs `serve`.

    Attributes:
      ready: the process's first reply.
    """

    def __init__(self, module: str, *args: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready: Any = self._answer()

    def ask(self, request: str) -> Any:
        """Send a request and wait for the reply."""
        assert self.process.stdin is not None
        print(request, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"A benchmark process ended with exit status {self.process.wait()}.")
        return json.loads(line)

    def end(self) -> None:
        """Kill the process, which frees its memory."""
        self.process.kill()
        self.process.wait()


def machine() -> dict[str, Any]:
    """Describe the machine: cores, processor and Python version."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The processor's name as reported by Linux."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
