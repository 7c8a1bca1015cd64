"""The demo's task learned by LoRA in one place: the reference line beside its federated curve.

One client of the largest rank has all training examples and takes as many steps in a round as the
cohort of the demo takes together at most, on batches of the same size. Everything else is that of
the demo. Two learning rates are tried, and the best last accuracy is the line, as the demo's rate
was chosen with its test accuracy in view. Run it (resumable, about five processor minutes) with
``python -m experiments.studies.demo.centralised``.
"""

import dataclasses
import pathlib
from typing import Any

from experiments.tools import json_lines
from fedjax_lora.runs.config import RunConfig, demo

FILE = pathlib.Path(__file__).parent / "results" / "centralised.jsonl"
RATES = (1e-2, 2e-2)


def config(rate: float) -> RunConfig:
    """Return the run of one client that has everything."""
    base = demo()
    assert base.local.max_steps is not None
    return dataclasses.replace(
        base,
        federation=dataclasses.replace(
            base.federation, method="fedit", clients=1, cohort=1, partition="iid",
            ranks="fixed(rank=16)",
        ),
        local=dataclasses.replace(
            base.local, learning_rate=rate,
            max_steps=base.local.max_steps * base.federation.cohort,
        ),
    )  # fmt: skip


def best(file: pathlib.Path = FILE) -> dict[str, Any]:
    """Return the rate with the best last accuracy: ``rate`` and the ``records`` of its rounds."""
    found = json_lines.by_name(file).values()
    return max(found, key=lambda one: one["records"][-1]["accuracy"])


def main() -> None:
    """Train with the rates that have no record yet."""
    from fedjax_lora.runs import run
    from fedjax_lora.runs.compilation import programs
    from fedjax_lora.runs.loading import load_assets

    done, shared, assets = json_lines.by_name(FILE), programs(), load_assets(demo())
    for rate in RATES:
        name = f"rate {rate:g}"
        if name not in done:
            records = run.run(config(rate), assets=assets, programs=shared).records
            kept = [
                {key: r[key] for key in ("round", "train_loss", "accuracy", "loss") if key in r}
                for r in records
            ]
            json_lines.append(FILE, {"name": name, "rate": rate, "records": kept})
            print(name, kept[-1], flush=True)


if __name__ == "__main__":
    main()
