"""Compile the round of `OPTIONS` for its target and record what is printed.

Run it with ``python -m experiments.benchmarks.targets.run``; it needs ``fedjax-lora[aot]``.
"""

import importlib.metadata
import json
import subprocess
import sys

from experiments.benchmarks.targets import OPTIONS, RESULTS
from fedjax_lora.core import atomic_io


def save(printed: str) -> None:
    """Write the result file.

    Args:
      printed: standard output of the command.
    """
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    record = {"options": OPTIONS, "versions": versions, "lines": printed.splitlines()}
    atomic_io.write(RESULTS / "explained.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    command = [sys.executable, "-m", "fedjax_lora", "run", *OPTIONS]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    save(done.stdout)
