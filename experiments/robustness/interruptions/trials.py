"""The trials: interruptions of a run and checks of the resumed run."""

import os
import pathlib
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.robustness.interruptions import harness
from experiments.robustness.interruptions.harness import CLI, Ended, Workspace
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.build import Assets
from fedjax_lora.runs.compilation import CompiledFunctions, programs
from fedjax_lora.runs.run import run

Trial = dict[str, Any]
"""Phase, rounds and exit status of an interrupted run; whether the resumed outputs are the same."""

MOMENTS = {"compiling": 5, "a round": 10, "a checkpoint": 6, "the results": 4}
"""Number of kills by intended moment; the actual phase is inferred from the folder."""

WITHIN = {"compiling": 2.0, "a round": 0.05, "a checkpoint": 0.05, "the results": 0.5}
"""Largest delay of the kill in seconds."""


def killed(
    target: Workspace,
    aim: str,
    rng: np.random.Generator,
    assets: Assets,
    shared: CompiledFunctions,
) -> Trial:
    """Kill a run with SIGKILL and resume it, in this process if it had compiled.

    Args:
      target: workspace with an uninterrupted run.
      aim: one of `MOMENTS`.
      rng: draws the moment.
      assets: data and model of the run.
      shared: compiled functions of runs in this process.
    """
    out = harness.fresh(target.path / "killed")
    if aim == "compiling":  # no compiled program is kept from an earlier run
        shutil.rmtree(target.path / "cache", ignore_errors=True)
    process = target.start(target.command(f"--out={out}"))
    number = int(rng.integers(2, target.rounds - 1))
    if aim == "compiling":
        harness.wait_for(process, (out / "config.json").exists)
    else:
        target_round = target.rounds if aim == "the results" else number
        harness.wait_for(process, lambda: harness.rounds_done(out) >= target_round)
    if aim == "a checkpoint":
        partial = (out / "checkpoints").glob
        harness.wait_for(process, lambda: any(partial(".*.partial")), poll=0.0)
    time.sleep(rng.uniform(0, WITHIN[aim]))
    status = harness.kill(process).status
    if aim == "compiling":  # the cache of compiled programs may be damaged too
        return after(target, out) | {"status": status}
    return after_here(target, out, assets, shared) | {"status": status}


def after(target: Workspace, out: pathlib.Path) -> Trial:
    """Resume an interrupted run in a new process; returns the trial."""
    found = {"phase": harness.phase(out, target.rounds), "rounds": harness.rounds_done(out)}
    resumed = harness.resume(target, out)
    return found | {"resumed": from_round(target, resumed), "same": same(target, resumed, out)}


def after_here(
    target: Workspace,
    out: pathlib.Path,
    assets: Assets,
    shared: CompiledFunctions,
    *,
    whole: pathlib.Path | None = None,
) -> Trial:
    """Resume an interrupted run in this process, which has loaded and compiled everything."""
    found = {"phase": harness.phase(out, target.rounds), "rounds": harness.rounds_done(out)}
    config, executed = configs.load(out / "config.json"), []
    run(config, out=out, resume=True, assets=assets, programs=shared, on_round=executed.append)
    same = harness.outputs(out) == harness.outputs(whole or target.path / "whole")
    return found | {"resumed": target.rounds - len(executed), "same": same}


def from_round(target: Workspace, resumed: Ended) -> int:
    """Parse the round after which a run was resumed; all rounds if it was finished."""
    if "is finished" in resumed.output:
        return target.rounds
    words = resumed.output.partition("resumed after round ")[2].split()
    return int(words[0]) if words else 0


def same(target: Workspace, resumed: Ended, out: pathlib.Path) -> bool:
    """Whether a resumed run succeeded with the bytes of the uninterrupted run."""
    return resumed.status == 0 and harness.outputs(out) == harness.outputs(target.path / "whole")


def again_and_again(target: Workspace, rng: np.random.Generator) -> Trial:
    """Kill a run and its resumed successors repeatedly, each after some more rounds."""
    out, kills = harness.fresh(target.path / "again"), []
    process = target.start(target.command(f"--out={out}"))
    while harness.rounds_done(out) < target.rounds - 25:
        target_round = (kills[-1] if kills else 0) + int(rng.integers(5, 25))
        harness.wait_for(process, lambda w=target_round: harness.rounds_done(out) >= w)
        harness.kill(process)
        kills.append(harness.rounds_done(out))
        process = target.start([*CLI, f"--resume={out}"])
    return {"kills": len(kills), "rounds": kills, "same": same(target, harness.ended(process), out)}


def stopped_by_signal(target: Workspace, number: signal.Signals) -> Trial:
    """Send a stop signal; the run finishes its round and prints how to resume."""
    out = harness.fresh(target.path / "signal")
    process = target.start(target.command(f"--out={out}"))
    harness.wait_for(process, lambda: harness.rounds_done(out) >= 3)
    stopped = harness.kill(process, number)
    done = harness.rounds_done(out)
    saved = int(harness.newest_checkpoint(out).name) == done
    message = (
        f"stopped after round {done} of {target.rounds}; "
        f"resume with: fedjax-lora run --resume {out}"
    )
    return after(target, out) | {
        "status": stopped.status,
        "reported": message in stopped.output and saved,
    }


def second_run(target: Workspace) -> Iterator[tuple[str, Trial]]:
    """Start a second run in the same folder, which is refused; a killed run's lock is released."""
    out = harness.fresh(target.path / "shared")
    process = target.start(target.command(f"--out={out}"))
    harness.wait_for(process, lambda: harness.rounds_done(out) >= 1)
    process.send_signal(signal.SIGSTOP)  # so that it does not finish before the others start
    for option in (f"--resume={out}", f"--overwrite --out={out}"):
        other = harness.call(target, [*CLI, *option.split()])
        reported = f"Another run is writing to {out}" in other.sentence
        yield (
            f"second run in the folder, {option.split('=')[0].split()[0]}",
            {"status": other.status, "reported": reported},
        )
    harness.kill(process)
    yield "killed while it held the lock", after(target, out)


def full_disk(target: Workspace) -> Trial:
    """Fill the disk during a run, enlarge it and resume.

    The disk is a tmpfs in a private mount namespace. It has room for two checkpoints, but not for
    the third one beside them.
    """
    out, disk = harness.fresh(target.path / "full"), target.path / "disk"
    disk.mkdir(exist_ok=True)
    first = shlex.join(target.command(f"--out={disk / 'out'}"))
    again = shlex.join([*CLI, f"--resume={disk / 'out'}"])
    script = f"mount -t tmpfs -o size=216k none {disk}; {first}; echo status $?; "
    script += f"mount -o remount,size=64m {disk}; {again}; echo status $?; cp -r {disk}/out {out}"
    done = harness.call(target, ["unshare", "-rm", "bash", "-c", script])
    full, last = (int(x.split()[1]) for x in done.output.splitlines() if x.startswith("status "))
    sentence = next((x for x in done.output.splitlines() if x.startswith("fedjax-lora: ")), "")
    return {
        "status": full,
        "reported": "cannot be written" in sentence and "No space left on device" in sentence,
        "resumed": from_round(target, done),
        "same": same(target, Ended(last, done.output), out),
    }


def read_only(target: Workspace) -> Trial:
    """Remove the write permission of a folder during a run, restore it and resume."""
    # Without this capability, permissions also apply to a superuser.
    obey = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    out = harness.fresh(target.path / "read-only")
    process = target.start([*obey, *target.command(f"--out={out}")])
    harness.wait_for(process, lambda: harness.rounds_done(out) >= 3)
    folders = [out, out / "checkpoints"]
    for folder in folders:
        folder.chmod(0o555)
    stopped = harness.ended(process)
    refused = harness.call(target, [*obey, *CLI, f"--resume={out}"])
    for folder in folders:
        folder.chmod(0o755)
    reported = all("cannot be written" in x.sentence and x.status == 2 for x in (stopped, refused))
    return after(target, out) | {"status": stopped.status, "reported": reported}


def damaged(target: Workspace, rng: np.random.Generator) -> Iterator[tuple[str, Trial]]:
    """Truncate each file of the newest checkpoint, or flip a bit in it, and resume."""
    cut = harness.fresh(target.path / "cut")
    process = target.start(target.command(f"--out={cut}"))
    harness.wait_for(process, lambda: harness.rounds_done(cut) >= target.rounds // 2)
    harness.kill(process, signal.SIGTERM)
    files = harness.checkpoint_files(cut)
    for index, file in enumerate(files):
        for how in ("truncated", "bit flipped"):
            out = harness.fresh(target.path / "damaged")
            shutil.copytree(cut, out)
            newest = harness.newest_checkpoint(out)
            harness.damage(newest / file, how, rng)
            resumed = harness.resume(target, out)
            reported = f"checkpoint {newest} is damaged" in resumed.output
            name = file if file.suffix else pathlib.Path(file.parts[0], "...")
            yield (
                f"{how}: file {index + 1} of {len(files)}, {name}",
                {
                    "reported": reported and from_round(target, resumed) < int(newest.name),
                    "resumed": from_round(target, resumed),
                    "same": same(target, resumed, out),
                },
            )


def method_killed(
    target: Workspace, method: str, ranks: str, rng: np.random.Generator, assets: Assets
) -> Trial:
    """Kill a run of a method in the middle of its rounds and resume it in this process.

    Args:
      target: workspace.
      method: name of the method.
      ranks: rank allocation.
      rng: draws the round.
      assets: data and model of the runs.
    """
    out, whole = (harness.fresh(target.path / name) for name in ("method", "method-whole"))
    process = target.start(target.command(f"--method={method}", f"--ranks={ranks}", f"--out={out}"))
    target_round = int(rng.integers(target.rounds // 4, 3 * target.rounds // 4))
    harness.wait_for(process, lambda: harness.rounds_done(out) >= target_round)
    harness.kill(process)
    shared = programs()
    config = configs.load(out / "config.json")
    run(config, out=whole, assets=assets, programs=shared)
    return after_here(target, out, assets, shared, whole=whole)
