"""Contenders that take turns, each in a process of its own, so that none disturbs another."""

import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


def serve(ready: Any, obey: Callable[[str], Any]) -> None:
    """A contender's process: a line in is an order, a line out the answer as JSON.

    Args:
      ready: the first line out, before any order.
      obey: carries out an order and returns the answer.
    """
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(line.strip())), flush=True)


class Worker:
    """The other end of `serve`: waits while its contender works, and the contender while it rests.

    Attributes:
      ready: what the contender said first.
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

    def ask(self, order: str) -> Any:
        """Give an order and wait for the answer."""
        assert self.process.stdin is not None
        print(order, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"A contender ended with code {self.process.wait()}.")
        return json.loads(line)

    def end(self) -> None:
        """Stop it: a resting process still holds its memory."""
        self.process.kill()
        self.process.wait()


def machine() -> dict[str, Any]:
    """What a time depends on besides the program."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """The processor's name, as Linux gives it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
