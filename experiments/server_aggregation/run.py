"""Measure; see `experiments.server_aggregation`."""

import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tyro

from experiments.server_aggregation import RESULTS
from experiments.server_aggregation.contenders import CONTENDERS
from experiments.server_aggregation.problem import PROBLEMS, Problem, exact, relative_error

MODULE = "experiments.server_aggregation.run"
ROOT = pathlib.Path(__file__).parents[2]


def serve(contender: str, problem: Problem) -> None:
    """A contender's process. A line in is a method, the line out its seconds.

    A first line out says who is ready. A line in that ends in ``.npz`` is where to leave the
    factors of every site's first layer.
    """
    made = CONTENDERS[contender](problem)
    answer = made.methods["hlora"]()  # the first call warms up
    ready = {"methods": list(made.methods), "layers": made.layers, "about": made.about}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        order = line.strip()
        began = time.perf_counter()
        if order.endswith(".npz"):
            named = {}
            for site in problem.sites:
                named[f"{site}/a"], named[f"{site}/b"] = made.factors(answer, site)
            np.savez(order, **named)
        else:
            made.methods[order]()
        print(time.perf_counter() - began, flush=True)


class Worker:
    """The other end of `serve`."""

    def __init__(self, contender: str, problem: Problem):
        text = json.dumps(dataclasses.asdict(problem))
        self.process = subprocess.Popen(
            [sys.executable, "-m", MODULE, contender, text],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready: dict[str, Any] = self._answer()

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
        """Its process holds gigabytes."""
        self.process.kill()
        self.process.wait()


def measure(problem: Problem, repeats: int) -> dict[str, Any]:
    """Seconds of every method by contender and turn, and the errors of the first answers."""
    workers: dict[str, Worker] = {}
    try:
        for name in CONTENDERS:  # one after another: making the clients takes both cores
            workers[name] = Worker(name, problem)
        record = {name: worker.ready | {"seconds": {}} for name, worker in workers.items()}
        for _ in range(repeats):
            for name, worker in workers.items():
                for method in worker.ready["methods"]:
                    record[name]["seconds"].setdefault(method, []).append(worker.ask(method))
        answers = {name: factors(worker, problem) for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.end()
    for site in problem.sites:
        want = exact(problem, site, 0)
        for name, pairs in answers.items():
            errors = record[name].setdefault("errors", {})
            errors[site] = relative_error(pairs[site], want)
    return {
        "problem": dataclasses.asdict(problem),
        "machine": {
            "cores": os.cpu_count(),
            "processor": processor(),
            "python": platform.python_version(),
        },
        "contenders": record,
    }


def factors(worker: Worker, problem: Problem) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Those of every site's first layer."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "factors.npz"
        worker.ask(str(path))
        with np.load(path) as saved:
            return {site: (saved[f"{site}/a"], saved[f"{site}/b"]) for site in problem.sites}


def processor() -> str:
    """The processor's name, as Linux gives it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(repeats: int = 3, only: str = "") -> None:
    """Measure every adapter set, about a quarter of an hour on two cores.

    Args:
      repeats: turns of each contender.
      only: the name of a single adapter set.
    """
    RESULTS.mkdir(exist_ok=True)
    for problem in PROBLEMS:
        if only in ("", problem.name):
            record = measure(problem, repeats)
            path = RESULTS / f"{problem.name}.json"
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in CONTENDERS:
        serve(sys.argv[1], Problem(**json.loads(sys.argv[2])))
    else:
        tyro.cli(main)
