"""Measure; see `experiments.benchmarks.scaling`."""

import dataclasses
import json
import os
import pathlib
import resource
import sys
import tempfile
from typing import Any

import tyro

from experiments.benchmarks.processes import ROOT, watch
from experiments.benchmarks.scaling import RECORDS, RESULTS
from experiments.benchmarks.scaling.points import POINTS, Point, config
from experiments.tools import json_lines
from experiments.tools.alternate import machine

MODULE = "experiments.benchmarks.scaling.run"


def play(point: Point, data_dir: str | None) -> dict[str, Any]:
    """Execute the rounds of a point; returns their seconds and losses and the memory."""
    import jax
    import numpy as np

    from fedjax_lora.runs import build, run

    made = build.build(config(point, data_dir))
    before = peak_megabytes()
    progress, seconds, losses = made.begin(), [], []
    for _ in range(point.rounds):
        progress, record, times = run.play_round(made, progress)
        seconds.append(times["train_seconds"])
        losses.append(record["train_loss"])
    return {
        "seconds": seconds,
        "train_loss": losses,
        "compilations": made.step.compiled._cache_size(),  # type: ignore[attr-defined]
        "mean_rank": float(np.mean(made.ranks.initial)),
        "devices": jax.device_count(),
        "before_megabytes": before,
        "peak_megabytes": peak_megabytes(),
        "jax": jax.__version__,
    }


def peak_megabytes() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(point: Point, data_dir: str | None) -> dict[str, Any]:
    """Measure a point in a process of its own with emulated CPU devices."""
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        order = {"point": dataclasses.asdict(point), "data_dir": data_dir, "out": f"{made}/out"}
        command = [sys.executable, "-m", MODULE, "point", json.dumps(order)]
        forced = f"--xla_force_host_platform_device_count={point.devices or 1}"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": forced}
        took = watch(command, environment, folder / "log")
        record = json.loads((folder / "out").read_text(encoding="utf-8"))
    return {"point": dataclasses.asdict(point), "process_seconds": took.seconds} | record


def main(data_dir: str | None = None, only: str = "", results: pathlib.Path = RESULTS) -> None:
    """Measure the points without a record; ten minutes on two idle cores.

    Args:
      data_dir: folder with ``ag_news``; the built-in task by default.
      only: the name of a single point.
      results: folder of the result files.
    """
    results.mkdir(exist_ok=True)
    about = json.dumps({"machine": machine()}, indent=1) + "\n"
    (results / "machine.json").write_text(about, encoding="utf-8")
    finished = json_lines.by_name(results / RECORDS)
    for point in POINTS:
        if only in ("", point.name) and point.name not in finished:
            record = measure(point, data_dir)
            json_lines.append(results / RECORDS, {"name": point.name} | record)
            print(point.name, [round(s, 2) for s in record["seconds"]], flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "point":
        order = json.loads(sys.argv[2])
        record = play(Point(**order["point"]), order["data_dir"])
        pathlib.Path(order["out"]).write_text(json.dumps(record), encoding="utf-8")
    else:
        tyro.cli(main)
