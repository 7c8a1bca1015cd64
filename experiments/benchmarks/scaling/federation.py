"""Memory of a whole run whose federation is much larger than its cohorts.

``fedjax-lora run`` on made-up texts, two for every client, with three layers of MiniLM and clients
of ranks 2 to 16. Peak memory is that of the process and its children, from reading the texts to the
results. It takes a minute or two on two idle cores:

    python -m experiments.benchmarks.scaling.federation             # resumable
    python -m experiments.benchmarks.scaling.report                 # tables and figure
"""

import argparse
import csv
import json
import os
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from experiments.benchmarks.processes import ROOT, watch
from experiments.benchmarks.scaling import RESULTS
from experiments.tools import json_lines

RECORDS = "federation.jsonl"
COHORT, SIZES = 1_000, (100_000,)
OPTIONS = (
    "--layers=3", "--rounds=2", "--eval-every=2", "--batch=2", "--max-length=16",
    "--min-examples=1", "--clients-per-step=10", "--step-shapes=1", "--learning-rate=0.01",
)  # fmt: skip
WORDS = (
    "market", "match", "planet", "senate", "goal", "stock", "orbit", "vote", "coach", "profit",
    "rocket", "treaty", "season", "merger", "virus", "border",
)  # fmt: skip
"""The class of a text is that of its first word."""


def write_texts(file: pathlib.Path, count: int, seed: int) -> None:
    """Write a table of texts of eight words and their classes."""
    drawn = np.random.default_rng(seed).integers(0, len(WORDS), (count, 8))
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["text", "label"])
        rows.writerows([" ".join(WORDS[k] for k in row), f"class {row[0] % 4}"] for row in drawn)


def measure(clients: int, cohort: int, options: tuple[str, ...] = OPTIONS) -> dict[str, Any]:
    """Run a federation of this size in a process of its own; returns its record."""
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        write_texts(folder / "train.csv", 2 * clients, seed=0)
        write_texts(folder / "test.csv", 100, seed=1)
        task = f"file(train={made + '/train.csv'!r}, test={made + '/test.csv'!r})"
        command = [
            sys.executable, "-m", "fedjax_lora", "run", f"--task={task}", f"--clients={clients}",
            f"--cohort={cohort}", f"--out={made}/run", *options,
        ]  # fmt: skip
        own = {"PYTHONPATH": str(ROOT), "FEDJAX_LORA_CACHE": f"{made}/cache"}
        took = watch(command, os.environ | own, folder / "log")
        summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
        metrics = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "name": f"{cohort} of {clients}",
        "clients": clients,
        "cohort": cohort,
        "peak_megabytes": took.peak_megabytes,
        "processor_seconds": summary["processor_seconds"],
        "train_loss": [json.loads(line)["train_loss"] for line in metrics],
        "jax": summary["packages"]["jax"],
    }


def main() -> None:
    """Measure the sizes without a record."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for clients in SIZES:
        if f"{COHORT} of {clients}" not in json_lines.by_name(RESULTS / RECORDS):
            record = measure(clients, COHORT)
            json_lines.append(RESULTS / RECORDS, record)
            print(record, flush=True)


if __name__ == "__main__":
    main()
