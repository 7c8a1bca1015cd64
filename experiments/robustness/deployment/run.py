"""Run the trials that have no result yet; see `experiments.robustness.deployment`."""

import json
import pathlib
import time
from collections.abc import Callable, Collection
from typing import Any, Literal

import numpy as np
import tyro

from experiments.robustness.deployment import RESULTS, faults
from experiments.robustness.deployment.harness import (
    Bench,
    Memory,
    lines,
    load,
    running,
    same,
    spec_of,
)
from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.deploy import tasks
from fedjax_lora.deploy.spec import FederationSpec
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.environment import environment

Trial = dict[str, Any]

PARITY = {
    "hlora": (2, 4, 8),
    "flexlora": (2, 4, 8),
    "zero_padding": (2, 4, 8),
    "hetlora": (2, 4, 8),
    "lora_a2": (2, 4, 8),
    "fedrora": (2, 4, 8),
    "flora": (2, 4, 8),
    "fedex_lora": (4, 4, 4),
    "lora_fair": (4, 4, 4),
}
"""Methods and the ranks of three sites."""

ROUND = 1
"""The round in which processes are killed, from 0: one is played before it and one after it."""


class Results:
    """Trials by name in one file; finished trials are not run again."""

    def __init__(self, part: str) -> None:
        self.path = RESULTS / f"{part}.json"
        self.trials: dict[str, Trial] = {}
        if self.path.exists():
            self.trials = json.loads(self.path.read_text("utf-8"))

    def once(self, name: str, run: Callable[[], Trial]) -> None:
        """Run a trial unless there is its result."""
        if name in self.trials:
            return
        began = time.monotonic()
        trial = run() | {"load": load()}
        trial["wall_seconds"] = round(time.monotonic() - began, 1)
        print(name, trial, flush=True)
        self.trials[name] = trial
        atomic_io.write(self.path, json.dumps(self.trials, indent=1) + "\n")


def parity(folder: pathlib.Path) -> None:
    """Methods over the network and in one process."""
    first = spec_of(3)
    bench, results = Bench(folder / "parity", first), Results("parity")
    if set(PARITY) <= set(results.trials):
        return
    found = bench.prepare(first)
    with running(bench, found, ["server", *first.sites]):
        for method, ranks in PARITY.items():
            results.once(method, lambda m=method, r=ranks: _compared(bench, m, r))


def _compared(bench: Bench, method: str, ranks: tuple[int, ...]) -> Trial:
    spec = spec_of(3, method=method, ranks=ranks, deadline=300)
    bench.prepare(spec)
    real = bench.folder / f"{method}-real"
    bench.play(spec, real)
    return {"ranks": list(ranks), "same_bytes": same(real, _alone(bench, spec))} | traffic(real)


def _alone(
    bench: Bench, spec: FederationSpec, silent: Collection[tuple[int, int]] = ()
) -> pathlib.Path:
    """The same federation in one process; trials with the same rounds share it."""
    gone = "".join(f"-{t}.{k}" for t, k in sorted(silent))
    out = bench.folder.parent / f"alone-{spec.digest[:12]}{gone}"
    if not (out / "summary.json").exists():
        bench.in_process(spec, out, silent)
    return out


def traffic(out: pathlib.Path) -> Trial:
    """Bytes and seconds of the rounds of a run."""
    messages, records = lines(out, "messages.jsonl"), lines(out, "metrics.jsonl")
    sites = [one for line in messages for one in line["sites"].values()]
    total = lambda name: sum(site[name] for site in sites)  # noqa: E731
    return {
        "rounds": len(records),
        "silent": [line["silent"] for line in records],
        "first_seconds": messages[0]["seconds"],
        "round_seconds": float(np.median([line["seconds"] for line in messages[1:]])),
        "down": total("down"),
        "up": total("up"),
        "counted_down": sum(line["down_bytes"] for line in records),
        "counted_up": sum(line["up_bytes"] for line in records),
        "overhead": total("down_message") + total("up_message") - total("down") - total("up"),
    }


def kills(folder: pathlib.Path) -> None:
    """A site, and the server, killed in every phase of a round."""
    results = Results("kills")
    for phase in faults.SITE:
        results.once(f"site {phase}", lambda p=phase: _site_killed(folder / f"site-{p}", p))
    for phase in faults.SERVER:
        results.once(f"server {phase}", lambda p=phase: _server_killed(folder / f"server-{p}", p))


def _site_killed(folder: pathlib.Path, phase: str) -> Trial:
    """Site 1 dies; the others finish, or the run stops in a sentence and is resumed with it."""
    spec = spec_of(3, least=2, deadline=90)
    bench = Bench(folder, spec)
    found, out = bench.prepare(spec), folder / "real"
    others = ["server", spec.sites[0], spec.sites[2]]
    told = ""
    with running(bench, found, others):
        with running(bench, found, [spec.sites[1]], f"{phase}:{ROUND}"):
            try:
                bench.play(spec, out)
            except InputError as error:
                told = str(error)
        if told:
            with running(bench, found, [spec.sites[1]]):
                bench.play(spec, out)
    silent = [line["silent"] for line in lines(out, "metrics.jsonl")]
    gone = {(t, k) for t, ids in enumerate(silent) for k in ids}
    alone = _alone(bench, spec, gone)
    return {"told": told, "silent": silent, "same_bytes": same(out, alone)}


def _server_killed(folder: pathlib.Path, phase: str) -> Trial:
    """The server dies, is started again, and the run is resumed; the sites keep running."""
    spec = spec_of(3, deadline=300)
    bench = Bench(folder, spec)
    found, out = bench.prepare(spec), folder / "real"
    told = ""
    with running(bench, found, spec.sites):
        with running(bench, found, ["server"], f"{phase}:{ROUND}") as started:
            try:
                bench.play(spec, out, watched=started["server"])
            except InputError as error:
                told = str(error)
        with running(bench, found, ["server"]):
            bench.play(spec, out, resume=True)
    alone = _alone(bench, spec)
    records = lines(out, "metrics.jsonl")
    return {"told": told, "silent": [r["silent"] for r in records], "same_bytes": same(out, alone)}


def scale(folder: pathlib.Path) -> None:
    """Twenty sites, ten rounds."""
    results = Results("scale")

    def run() -> Trial:
        spec = spec_of(20, rounds=10, deadline=590)
        bench, out = Bench(folder / "scale", spec), folder / "scale" / "real"
        found = bench.prepare(spec)
        with running(bench, found, ["server", *spec.sites]) as started:
            memory = Memory(started)
            memory.start()
            bench.play(spec, out)
            memory.stop.set()
        sites = [memory.most[site] for site in spec.sites]
        most = {"server_memory": memory.most["server"], "site_memory": float(np.mean(sites))}
        return traffic(out) | most

    results.once("20 sites", run)


def language(folder: pathlib.Path, model: str = "smollm2-135m") -> None:
    """A decoder on three sites with instructions."""
    results = Results("language")

    def run() -> Trial:
        spec = _language_spec(model)
        columns = {"instruction": "question", "completion": "answer"}
        _write_questions(folder / "language")
        bench, out = Bench(folder / "language", spec, columns), folder / "language" / "real"
        found = bench.prepare(spec)
        with running(bench, found, ["server", *spec.sites]) as started:
            memory = Memory(started)
            memory.start()
            bench.play(spec, out)
            memory.stop.set()
        scores = [line["perplexity"] for line in lines(out, "metrics.jsonl")]
        return traffic(out) | {"perplexity": scores, "site_memory": memory.most[spec.sites[0]]}

    results.once(model, run)


def _language_spec(model: str) -> FederationSpec:
    every = {
        "data": configs.DataConfig(task=tasks.shared("instructions"), max_length=64),
        "model": configs.ModelConfig(model=model),
        "federation": configs.FederationConfig(method="hlora", rounds=3, cohort=3),
        "local": configs.LocalConfig(batch=4, max_steps=5),
    }
    return FederationSpec(
        config=configs.RunConfig(**every),
        classes=(),
        sites=("s0", "s1", "s2"),
        ranks=(2, 4, 8),
        deadline=590,
    )


def _write_questions(folder: pathlib.Path) -> None:
    """Sums in words, other ones at each site."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(("s0", "s1", "s2", "test")):
        pairs = [(a, b) for a in range(2, 12) for b in range(2, 8) if (a + 3 * b) % 4 == k]
        rows = [
            {"question": f"What is {a} plus {b}?", "answer": f"{a} plus {b} is {a + b}."}
            for a, b in pairs
        ]
        text = "\n".join(map(json.dumps, rows))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


PARTS = {"parity": parity, "kills": kills, "scale": scale, "language": language}


def main(
    folder: pathlib.Path,
    part: Literal["all", "parity", "kills", "scale", "language"] = "all",
) -> None:
    """Run the trials that have no result yet.

    Args:
      folder: folder of the federations; it is not removed.
      part: which of them.
    """
    RESULTS.mkdir(exist_ok=True)
    for name, run in PARTS.items():
        if part in ("all", name):
            run(folder.resolve())
    atomic_io.write(RESULTS / "environment.json", json.dumps(environment(), indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
