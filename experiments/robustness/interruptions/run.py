"""Run the trials; see `experiments.robustness.interruptions`."""

import json
import pathlib
import signal
from collections.abc import Callable

import numpy as np
import tyro

from experiments.robustness.interruptions import KILLS, RESULTS, SEED, harness, trials
from experiments.robustness.interruptions.trials import Trial
from fedjax_lora import methods
from fedjax_lora.core import atomic_io
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.build import Assets, load_assets
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.environment import environment

assert sum(trials.MOMENTS.values()) == KILLS


class Book:
    """Trials by name in one file; those it holds are not run again."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.held: dict[str, Trial] = json.loads(path.read_text()) if path.exists() else {}

    def note(self, name: str, trial: Trial) -> None:
        """Write down a trial."""
        print(name, trial, flush=True)
        self.held[name] = trial
        atomic_io.write(self.path, json.dumps(self.held, indent=1) + "\n")

    def once(self, name: str, run: Callable[[], Trial]) -> None:
        """Run a trial unless it is in the file."""
        if name not in self.held:
            self.note(name, run())


def ranks_for(method: str) -> str:
    """Ranks that a method takes: mixed ones if it can."""
    return "tiers(ranks=[1, 2, 4])" if methods.takes_mixed_ranks(method) else "fixed(rank=2)"


def main(folder: pathlib.Path, part: str = "all") -> None:
    """Run what the result files do not hold yet.

    Args:
      folder: where the runs are; emptied by nobody.
      part: kills, others or methods; all by default.
    """
    target = harness.prepare(folder)
    whole = target.path / "whole"
    if not (whole / "summary.json").exists():
        assert harness.call(target, target.command(f"--out={harness.fresh(whole)}")).status == 0
    if part in ("all", "kills"):
        kills(target, Book(RESULTS / "kills.json"))
    if part in ("all", "others"):
        others(target, Book(RESULTS / "others.json"))
    if part in ("all", "methods"):
        each_method(target, Book(RESULTS / "methods.json"))
    atomic_io.write(RESULTS / "environment.json", json.dumps(environment(), indent=1) + "\n")


def kills(target: harness.Workspace, book: Book) -> None:
    """`KILLS` processes killed, and one again and again."""
    assets, shared = assets_of(target.path / "whole"), programs()
    for at, (aim, count) in enumerate(trials.MOMENTS.items()):
        for n in range(count):
            rng = np.random.default_rng([SEED, at, n])
            work = lambda a=aim, r=rng: trials.killed(target, a, r, assets, shared)  # noqa: E731
            book.once(f"{aim} {n + 1}", work)
    rng = np.random.default_rng([SEED, 100])
    book.once("again and again", lambda: trials.again_and_again(target, rng))


def assets_of(out: pathlib.Path) -> Assets:
    """Data and model of a run."""
    return load_assets(configs.load(out / "config.json"))


def each_method(target: harness.Workspace, book: Book) -> None:
    """Every method of the registry, killed once."""
    assets = assets_of(target.path / "whole")
    for n, name in enumerate(methods.METHODS):
        rng, ranks = np.random.default_rng([SEED, 300, n]), ranks_for(name)
        book.once(
            name, lambda m=name, k=ranks, r=rng: trials.method_killed(target, m, k, r, assets)
        )


def others(target: harness.Workspace, book: Book) -> None:
    """Everything but kills."""
    for number in (signal.SIGINT, signal.SIGTERM):
        book.once(number.name, lambda n=number: trials.asked(target, n))
    book.once("full disk", lambda: trials.full_disk(target))
    book.once("read-only folder", lambda: trials.read_only(target))
    if "killed while it held the lock" not in book.held:
        for name, trial in trials.second_run(target):
            book.note(name, trial)
    if not any(name.startswith("bit flipped") for name in book.held):
        for name, trial in trials.damaged(target, np.random.default_rng([SEED, 200])):
            book.note(name, trial)


if __name__ == "__main__":
    tyro.cli(main)
