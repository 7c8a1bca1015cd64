"""A small run for a process of its own, started with or without ``python -O``."""

import json
import pathlib
import sys
from typing import Any

import fedjax_lora as fl
from tests._helpers import tiny_runs
from tests._helpers.tiny_runs import CONFIG, change

FEW = change(CONFIG, {"federation.rounds": 2, "execution.eval_every": 1})


def play(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Run into a folder; returns the records of the rounds."""
    return fl.run(FEW, out=folder, assets=tiny_runs.assets()).records


if __name__ == "__main__":
    if __debug__:
        raise SystemExit("This is a start without -O.")
    print(json.dumps(play(pathlib.Path(sys.argv[1]))))
