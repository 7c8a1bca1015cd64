"""Measure; see `experiments.benchmarks.cohort`."""

import dataclasses
import json
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro

from experiments.benchmarks.cohort import RECORDS, RESULTS, work
from experiments.benchmarks.cohort.work import CASES, Case
from experiments.tools import json_lines
from experiments.tools.alternate import Worker, machine, serve

MODULE = "experiments.benchmarks.cohort.run"
CONTENDERS = ("ours", "loop", "peft", "products")


def contend(name: str, order: dict[str, Any]) -> None:
    """Serve a contender: every request is a round, the reply its seconds, loss and peak memory."""
    began = time.perf_counter()
    round, versions = _make(name, order)
    loss = round()  # compiles, or warms up
    ready = {"first_seconds": time.perf_counter() - began, "loss": loss, "versions": versions}

    def handle(_: str) -> dict[str, float]:
        began = time.perf_counter()
        loss = round()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"seconds": time.perf_counter() - began, "loss": loss, "peak_megabytes": peak}

    serve(ready, handle)


def _make(name: str, order: dict[str, Any]) -> tuple[Callable[[], float], dict[str, str]]:
    case = Case(**order["case"] | {"ranks": tuple(order["case"]["ranks"])})
    folder, data_dir = pathlib.Path(order["folder"]), order["data_dir"]
    model = str(folder / "model")
    if name == "peft":
        import peft
        import torch

        from experiments.benchmarks.cohort import peft_loop

        loaded = work.load(folder / "work.npz")
        with np.load(folder / "start.npz") as start:
            made = peft_loop.contender(case, model, loaded, dict(start))
        return made, {"torch": torch.__version__, "peft": peft.__version__}
    import jax

    from experiments.benchmarks.cohort import ours, products
    from fedjax_lora.models import EncoderConfig, read_config

    versions = {"jax": jax.__version__}
    if name == "products":
        loaded = work.load(folder / "work.npz")
        config = read_config(folder / "model")
        assert isinstance(config, EncoderConfig)
        return products.contender(case, config, loaded), versions
    mode = "loop" if name == "loop" else "vmap"
    return ours.contender(case, model, data_dir, mode), versions


def lay_out(case: Case, folder: pathlib.Path, data_dir: str | None) -> int:
    """Write model, work and initial adapter of a case; returns the round's real tokens."""
    from experiments.benchmarks.cohort import base, ours

    base.write(case.model, folder / "model", data_dir)
    made = ours.work(case, str(folder / "model"), data_dir)
    work.save(made, folder / "work.npz")
    begin: dict[str, Any] = ours.start(case, str(folder / "model"), data_dir)
    np.savez(folder / "start.npz", **begin)
    return made.tokens


def measure(case: Case, repeats: int, data_dir: str | None = None) -> dict[str, Any]:
    """Measure every contender in turns.

    Raises:
      SystemExit: the contenders' losses differ.
    """
    record: dict[str, Any] = {"case": dataclasses.asdict(case), "machine": machine()}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        record["tokens"] = lay_out(case, pathlib.Path(folder), data_dir)
        order = {"case": dataclasses.asdict(case), "folder": folder, "data_dir": data_dir}
        try:
            for name in CONTENDERS:  # one after another: compiling takes both cores
                workers[name] = Worker(MODULE, name, json.dumps(order))
            turns: dict[str, list] = {name: [] for name in workers}
            for _ in range(repeats):
                for name, worker in workers.items():
                    turns[name].append(worker.ask("round"))
        finally:
            for worker in workers.values():
                worker.end()
    for name, worker in workers.items():
        seconds = [turn["seconds"] for turn in turns[name]]
        last = turns[name][-1]
        record[name] = worker.ready | {"seconds": seconds, "peak_megabytes": last["peak_megabytes"]}
    for name in ("loop", "peft"):
        if work.relative(record[name], record["ours"]) > 1e-3:
            raise SystemExit(
                f"{case.name}: {name} reports loss {record[name]['loss']}, ours "
                f"{record['ours']['loss']}; they did not do the same work."
            )
    del record["products"]["loss"]
    return record


def main(repeats: int = 7, only: str = "", data_dir: str | None = None) -> None:
    """Measure the cases without a record; half an hour on two idle cores.

    Args:
      repeats: number of turns.
      only: the name of a single case.
      data_dir: folder with ``ag_news``; the built-in task by default.
    """
    finished = json_lines.by_name(RESULTS / RECORDS)
    for case in CASES:
        if only in ("", case.name) and case.name not in finished:
            record = {"name": case.name} | measure(case, repeats, data_dir)
            json_lines.append(RESULTS / RECORDS, record)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in CONTENDERS:
        contend(sys.argv[1], json.loads(sys.argv[2]))
    else:
        tyro.cli(main)
