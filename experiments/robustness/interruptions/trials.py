"""The trials: what is done to a run, and what must then be so."""

import os
import pathlib
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.robustness.interruptions import ROUNDS, harness
from experiments.robustness.interruptions.harness import CLI, Ended, Workspace
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.build import Assets
from fedjax_lora.runs.compilation import CompiledFunctions, programs
from fedjax_lora.runs.run import run

Trial = dict[str, Any]
"""What was done, in which phase, how the process ended, and whether all was the same afterwards."""

MOMENTS = {"compiling": 5, "a round": 10, "a checkpoint": 6, "the results": 4}
"""How many of the kills aim at what; where they hit is seen from what lies in the folder."""

WITHIN = {"compiling": 2.0, "a round": 0.05, "a checkpoint": 0.05, "the results": 0.5}
"""Seconds after its beginning within which it is hit."""


def killed(
    target: Workspace,
    aim: str,
    rng: np.random.Generator,
    assets: Assets,
    shared: CompiledFunctions,
) -> Trial:
    """Kill a run with SIGKILL at a moment and resume it, in this process if it had compiled.

    Args:
      target: where, with an undisturbed run.
      aim: one of `MOMENTS`.
      rng: draws the moment.
      assets: data and model of the run.
      shared: compiled functions of runs in this process.
    """
    out = harness.fresh(target.path / "killed")
    if aim == "compiling":  # no compiled program is kept from an earlier run
        shutil.rmtree(target.path / "cache", ignore_errors=True)
    process = target.start(target.command(f"--out={out}"))
    number = int(rng.integers(2, ROUNDS - 1))
    if aim == "compiling":
        harness.wait_for(process, (out / "config.json").exists)
    else:
        wanted = ROUNDS if aim == "the results" else number
        harness.wait_for(process, lambda: harness.rounds_done(out) >= wanted)
    if aim == "a checkpoint":
        partial = (out / "checkpoints").glob
        harness.wait_for(process, lambda: any(partial(".*.partial")), poll=0.0)
    time.sleep(rng.uniform(0, WITHIN[aim]))
    status = harness.kill(process).status
    if aim == "compiling":  # the cache of compiled programs may be damaged too
        return after(target, out) | {"status": status}
    return after_here(target.path / "whole", out, assets, shared) | {"status": status}


def after(target: Workspace, out: pathlib.Path) -> Trial:
    """What a process has left, and what comes out if it is resumed."""
    found = {"phase": harness.phase(out), "rounds": harness.rounds_done(out)}
    resumed = harness.resume(target, out)
    return found | {"resumed": from_round(resumed), "same": same(target, resumed, out)}


def after_here(
    whole: pathlib.Path, out: pathlib.Path, assets: Assets, shared: CompiledFunctions
) -> Trial:
    """The same, resumed in this process, which has loaded and compiled everything already."""
    found = {"phase": harness.phase(out), "rounds": harness.rounds_done(out)}
    config, told = configs.load(out / "config.json"), []
    run(config, out=out, resume=True, assets=assets, programs=shared, on_round=told.append)
    same = harness.left(out) == harness.left(whole)
    return found | {"resumed": ROUNDS - len(told), "same": same}


def from_round(resumed: Ended) -> int:
    """The round after which a run was resumed, from what it says; all if it was finished."""
    if "is finished" in resumed.output:
        return ROUNDS
    words = resumed.output.partition("resumed after round ")[2].split()
    return int(words[0]) if words else 0


def same(target: Workspace, resumed: Ended, out: pathlib.Path) -> bool:
    """Whether a resumed run has ended well, with the bytes of the undisturbed one."""
    return resumed.status == 0 and harness.left(out) == harness.left(target.path / "whole")


def again_and_again(target: Workspace, rng: np.random.Generator) -> Trial:
    """Kill a run, and what resumes it, and so on: each after some rounds more."""
    out, seen = harness.fresh(target.path / "again"), []
    process = target.start(target.command(f"--out={out}"))
    while harness.rounds_done(out) < ROUNDS - 25:
        wanted = (seen[-1] if seen else 0) + int(rng.integers(5, 25))
        harness.wait_for(process, lambda w=wanted: harness.rounds_done(out) >= w)
        harness.kill(process)
        seen.append(harness.rounds_done(out))
        process = target.start([*CLI, f"--resume={out}"])
    return {"kills": len(seen), "rounds": seen, "same": same(target, harness.ended(process), out)}


def asked(target: Workspace, number: signal.Signals) -> Trial:
    """Ask a run to stop; it finishes its round, and says how to go on."""
    out = harness.fresh(target.path / "asked")
    process = target.start(target.command(f"--out={out}"))
    harness.wait_for(process, lambda: harness.rounds_done(out) >= 3)
    stopped = harness.kill(process, number)
    done = harness.rounds_done(out)
    saved = int(harness.newest_checkpoint(out).name) == done
    told = f"stopped after round {done} of {ROUNDS}; go on with: fedjax-lora run --resume {out}"
    return after(target, out) | {"status": stopped.status, "told": told in stopped.output and saved}


def second_run(target: Workspace) -> Iterator[tuple[str, Trial]]:
    """Two runs in one folder: the second is refused; the lock of a killed run is not in the way."""
    out = harness.fresh(target.path / "shared")
    process = target.start(target.command(f"--out={out}"))
    harness.wait_for(process, lambda: harness.rounds_done(out) >= 1)
    process.send_signal(signal.SIGSTOP)  # so that it is not at its end before the others begin
    for option in (f"--resume={out}", f"--overwrite --out={out}"):
        other = harness.call(target, [*CLI, *option.split()])
        told = f"Another run is writing to {out}" in other.sentence
        yield (
            f"second run in the folder, {option.split('=')[0].split()[0]}",
            {"status": other.status, "told": told},
        )
    harness.kill(process)
    yield "killed while it held the lock", after(target, out)


def full_disk(target: Workspace) -> Trial:
    """A disk that becomes full, and is then made larger.

    The disk is a tmpfs in a mount namespace of its own: nothing outside sees it. It holds two
    checkpoints, but not what else there is while the third is written.
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
        "told": "cannot be written" in sentence and "No space left on device" in sentence,
        "resumed": from_round(done),
        "same": same(target, Ended(last, done.output), out),
    }


def read_only(target: Workspace) -> Trial:
    """A folder that loses its write permission during a run; then it has it again."""
    # A superuser obeys permissions without the capability to override them.
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
    told = all("cannot be written" in x.sentence and x.status == 2 for x in (stopped, refused))
    return after(target, out) | {"status": stopped.status, "told": told}


def damaged(target: Workspace, rng: np.random.Generator) -> Iterator[tuple[str, Trial]]:
    """Every file of the newest checkpoint truncated, then with a bit flipped; the run resumed."""
    cut = harness.fresh(target.path / "cut")
    process = target.start(target.command(f"--out={cut}"))
    harness.wait_for(process, lambda: harness.rounds_done(cut) >= ROUNDS // 2)
    harness.kill(process, signal.SIGTERM)
    files = harness.checkpoint_files(cut)
    for index, file in enumerate(files):
        for how in ("truncated", "bit flipped"):
            out = harness.fresh(target.path / "damaged")
            shutil.copytree(cut, out)
            newest = harness.newest_checkpoint(out)
            harness.damage(newest / file, how, rng)
            resumed = harness.resume(target, out)
            told = f"checkpoint {newest} is damaged" in resumed.output
            name = file if file.suffix else pathlib.Path(file.parts[0], "...")
            yield (
                f"{how}: file {index + 1} of {len(files)}, {name}",
                {
                    "told": told and from_round(resumed) < int(newest.name),
                    "resumed": from_round(resumed),
                    "same": same(target, resumed, out),
                },
            )


def method_killed(
    target: Workspace, method: str, ranks: str, rng: np.random.Generator, assets: Assets
) -> Trial:
    """Kill a run of a method in the middle of its rounds, and resume it in this process.

    Args:
      target: where.
      method: which.
      ranks: that it takes.
      rng: draws the round.
      assets: data and model of the runs.
    """
    out, whole = (harness.fresh(target.path / name) for name in ("method", "method-whole"))
    process = target.start(target.command(f"--method={method}", f"--ranks={ranks}", f"--out={out}"))
    wanted = int(rng.integers(ROUNDS // 4, 3 * ROUNDS // 4))
    harness.wait_for(process, lambda: harness.rounds_done(out) >= wanted)
    harness.kill(process)
    shared = programs()
    config = configs.load(out / "config.json")
    run(config, out=whole, assets=assets, programs=shared)
    return after_here(whole, out, assets, shared)
