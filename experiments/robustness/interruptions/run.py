"""Run the trials; see `experiments.robustness.interruptions`."""

import json
import pathlib
import signal
from collections.abc import Callable

import numpy as np
import tyro

from experiments.robustness.interruptions import KILLS, RESULTS, SEED, commands, harness, trials
from experiments.robustness.interruptions.trials import Trial
from fedjax_lora import methods
from fedjax_lora.core import atomic_io
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.build import Assets, load_assets
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.environment import environment

assert sum(trials.MOMENTS.values()) == KILLS


class TrialFile:
    """Trials by name in one file; finished trials are not run again."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.trials: dict[str, Trial] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, trial: Trial) -> None:
        """Store a trial."""
        print(name, trial, flush=True)
        self.trials[name] = trial
        atomic_io.write(self.path, json.dumps(self.trials, indent=1) + "\n")

    def once(self, name: str, run: Callable[[], Trial]) -> None:
        """Run a trial unless the file has it."""
        if name not in self.trials:
            self.add(name, run())


def ranks_for(method: str) -> str:
    """Rank allocation for a method: mixed ranks if it supports them."""
    return "tiers(ranks=[1, 2, 4])" if methods.takes_mixed_ranks(method) else "fixed(rank=2)"


def main(folder: pathlib.Path, part: str = "all") -> None:
    """Run the trials that have no result yet.

    Args:
      folder: folder of the runs; it is not removed.
      part: kills, others, methods or commands; all by default.
    """
    target = harness.prepare(folder)
    whole = target.path / "whole"
    if not (whole / "summary.json").exists():
        assert harness.call(target, target.command(f"--out={harness.fresh(whole)}")).status == 0
    if part in ("all", "kills"):
        kills(target, TrialFile(RESULTS / "kills.json"))
    if part in ("all", "others"):
        others(target, TrialFile(RESULTS / "others.json"))
    if part in ("all", "methods"):
        each_method(target, TrialFile(RESULTS / "methods.json"))
    if part in ("all", "commands"):
        each_command(target, TrialFile(RESULTS / "commands.json"))
    atomic_io.write(RESULTS / "environment.json", json.dumps(environment(), indent=1) + "\n")


def kills(target: harness.Workspace, trial_file: TrialFile) -> None:
    """Kill `KILLS` runs at random moments, and one run repeatedly."""
    assets, shared = assets_of(target.path / "whole"), programs()
    for at, (aim, count) in enumerate(trials.MOMENTS.items()):
        for n in range(count):
            rng = np.random.default_rng([SEED, at, n])
            work = lambda a=aim, r=rng: trials.killed(target, a, r, assets, shared)  # noqa: E731
            trial_file.once(f"{aim} {n + 1}", work)
    rng = np.random.default_rng([SEED, 100])
    trial_file.once("again and again", lambda: trials.again_and_again(target, rng))


def assets_of(out: pathlib.Path) -> Assets:
    """Load data and model of a run."""
    return load_assets(configs.load(out / "config.json"))


def each_method(target: harness.Workspace, trial_file: TrialFile) -> None:
    """Kill a run of every method once."""
    assets = assets_of(target.path / "whole")
    for n, name in enumerate(methods.METHODS):
        rng, ranks = np.random.default_rng([SEED, 300, n]), ranks_for(name)
        trial_file.once(
            name, lambda m=name, k=ranks, r=rng: trials.method_killed(target, m, k, r, assets)
        )


def each_command(target: harness.Workspace, trial_file: TrialFile) -> None:
    """Stop the commands that use a finished run, and run them on a full disk."""
    for n, name in enumerate(reversed(commands.COMMANDS)):  # the longest is the last
        for number in (signal.SIGKILL, signal.SIGINT):
            rng = np.random.default_rng([SEED, 400, n, number])
            work = lambda m=name, k=number, r=rng: commands.stopped(target, m, k, r)  # noqa: E731
            trial_file.once(f"{name} {number.name}", work)
        trial_file.once(f"{name} full disk", lambda m=name: commands.full_disk(target, m))


def others(target: harness.Workspace, trial_file: TrialFile) -> None:
    """Run all trials other than kills."""
    for number in (signal.SIGINT, signal.SIGTERM):
        trial_file.once(number.name, lambda n=number: trials.stopped_by_signal(target, n))
    trial_file.once("full disk", lambda: trials.full_disk(target))
    trial_file.once("read-only folder", lambda: trials.read_only(target))
    if "killed while it held the lock" not in trial_file.trials:
        for name, trial in trials.second_run(target):
            trial_file.add(name, trial)
    if not any(name.startswith("bit flipped") for name in trial_file.trials):
        for name, trial in trials.damaged(target, np.random.default_rng([SEED, 200])):
            trial_file.add(name, trial)


if __name__ == "__main__":
    tyro.cli(main)
