"""Measure; see `experiments.benchmarks.aggregation`."""

import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tyro

from experiments.benchmarks.aggregation import RECORDS, RESULTS
from experiments.benchmarks.aggregation.contenders import CONTENDERS
from experiments.benchmarks.aggregation.problem import (
    PROBLEMS,
    SWEEPS,
    Problem,
    exact,
    relative_error,
)
from experiments.tools import json_lines
from experiments.tools.alternate import Worker, machine, serve

MODULE = "experiments.benchmarks.aggregation.run"


def contend(contender: str, problem: Problem) -> None:
    """Serve a contender: a request names a method, the reply is its time in seconds.

    A request that ends in ``.npz`` is a file; the factors of every target's first layer are saved
    there.
    """
    made = CONTENDERS[contender](problem)
    answer = made.methods["hlora"]()  # the first call warms up

    def handle(request: str) -> float:
        began = time.perf_counter()
        if request.endswith(".npz"):
            named = {}
            for target in problem.targets:
                named[f"{target}/a"], named[f"{target}/b"] = made.factors(answer, target)
            np.savez(request, **named)
        else:
            made.methods[request]()
        return time.perf_counter() - began

    serve({"methods": list(made.methods), "layers": made.layers, "about": made.about}, handle)


def measure(problem: Problem, repeats: int) -> dict[str, Any]:
    """Measure every method of every contender in turns, and the errors of the first results."""
    workers: dict[str, Worker] = {}
    try:
        for name in CONTENDERS:  # one after another: making the clients takes both cores
            workers[name] = Worker(MODULE, name, json.dumps(dataclasses.asdict(problem)))
        record = {name: worker.ready | {"seconds": {}} for name, worker in workers.items()}
        for _ in range(repeats):
            for name, worker in workers.items():
                for method in worker.ready["methods"]:
                    record[name]["seconds"].setdefault(method, []).append(worker.ask(method))
        answers = {name: factors(worker, problem) for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.end()
    for target in problem.targets:
        want = exact(problem, target, 0)
        for name, pairs in answers.items():
            errors = record[name].setdefault("errors", {})
            errors[target] = relative_error(pairs[target], want)
    return {
        "problem": dataclasses.asdict(problem),
        "machine": machine(),
        "contenders": record,
    }


def factors(worker: Worker, problem: Problem) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The factors of every target's first layer."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "factors.npz"
        worker.ask(str(path))
        with np.load(path) as saved:
            return {
                target: (saved[f"{target}/a"], saved[f"{target}/b"]) for target in problem.targets
            }


def main(
    repeats: int = 3, only: str = "", data_dir: str | None = None, results: pathlib.Path = RESULTS
) -> None:
    """Measure the problems without a record; about twenty minutes on two cores.

    Args:
      repeats: number of turns.
      only: the name of a single problem.
      data_dir: ignored; accepted by all benchmarks.
      results: folder of the result files.
    """
    finished = json_lines.by_name(results / RECORDS)
    swept = [problem for cases in SWEEPS.values() for problem in cases.values()]
    for name, problem in {problem.name: problem for problem in (*PROBLEMS, *swept)}.items():
        if only in ("", name) and name not in finished:
            json_lines.append(results / RECORDS, {"name": name} | measure(problem, repeats))
            print(name, flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in CONTENDERS:
        contend(sys.argv[1], Problem(**json.loads(sys.argv[2])))
    else:
        tyro.cli(main)
