"""Trials of the commands that use a finished run, and of comparisons.

Whatever happens to such a command, what stands under the name of an output is whole, the user reads
one sentence, and the same command run again writes what an uninterrupted one does.
"""

import functools
import json
import math
import os
import pathlib
import resource
import shlex
import signal
import subprocess
import sys

import numpy as np

from experiments.robustness.interruptions import harness
from experiments.robustness.interruptions.harness import Workspace
from experiments.robustness.interruptions.trials import Trial

PROGRAM = [sys.executable, "-m", "fedjax_lora"]
COMMANDS = ("compare", "export", "evaluate", "predict")

FULL = {
    "compare": "size=24k",
    "export": "size=24k",
    "evaluate": "nr_inodes=2",
    "predict": "nr_inodes=2",
}
"""A disk with too little room for the outputs: of too few bytes or, for small ones, files."""


def command(target: Workspace, name: str, out: pathlib.Path) -> list[str]:
    """Return a command that writes its outputs below a folder.

    Args:
      target: workspace with a finished run ``whole``.
      name: one of `COMMANDS`.
      out: the folder; that of `evaluate` and `predict` exists.
    """
    whole = target.path / "whole"
    if name == "compare":
        _, *options = target.command("--rounds=3")[len(PROGRAM) :]
        grid = ["--methods", "hlora", "masked_mean", "--seeds", "0", "1"]
        return [*PROGRAM, "compare", *options, *grid, f"--out={out}"]
    if name == "export":
        return [*PROGRAM, "export", str(whole), "--merged", f"--out={out / 'model'}"]
    if name == "evaluate":
        return [*PROGRAM, "evaluate", str(whole), f"--out={out / 'scores.json'}"]
    texts = target.path / "texts.txt"
    texts.write_text("north word1\neast word2\n")
    return [*PROGRAM, "predict", str(whole), f"--input={texts}", f"--out={out / 'labels.tsv'}"]


def outputs(out: pathlib.Path) -> dict[str, bytes]:
    """Read the outputs below a folder, without what depends on the time."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(out).parts)
        if hidden or not path.is_file() or name in ("report.html", "curves.png", "base.json"):
            continue
        content = path.read_bytes()
        if name.startswith("runs/") and name.endswith(".json"):
            content = json.dumps(json.loads(content)["history"]).encode()
        found[name] = b"" if path.suffix in (".parquet", ".md") else content
    return found


@functools.cache
def uninterrupted(target: Workspace, name: str) -> tuple[dict[str, bytes], float]:
    """Run a command to its end, once; returns its outputs and its processor time in seconds."""
    out, before = fresh(target, f"{name}-whole"), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = harness.call(target, command(target, name, out))
    if done.status:
        raise RuntimeError(done.output)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return outputs(out), after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def fresh(target: Workspace, name: str) -> pathlib.Path:
    """Return a new, empty folder."""
    out = harness.fresh(target.path / name)
    out.mkdir()
    return out


def stopped(
    target: Workspace, name: str, number: signal.Signals, rng: np.random.Generator
) -> Trial:
    """Send a signal to a command at a random moment, then run it again.

    The moment is one of its processor time, which other processes do not change.

    Args:
      target: workspace with a finished run.
      name: one of `COMMANDS`.
      number: SIGKILL or SIGINT.
      rng: draws the moment.
    """
    whole, seconds = uninterrupted(target, name)
    process, out = at_moment(target, name, rng.uniform(0.1, 0.6) * seconds)
    ended = harness.kill(process, number)
    left = outputs(out)
    expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[number]
    again = harness.call(target, command(target, name, remaining(name, out)))
    return {
        "status": ended.status,
        "reported": ended.status == 0
        or (ended.status == expected and "Traceback" not in ended.output),
        "whole_files": all(whole[path] == content for path, content in left.items()),
        "same": again.status == 0 and outputs(out) == whole,
    }


def at_moment(
    target: Workspace, name: str, moment: float
) -> tuple["subprocess.Popen[str]", pathlib.Path]:
    """Start a command and wait until it has used this processor time, in seconds.

    The first call, whose time is known, compiled more: where a command has ended before, the moment
    is half as late.

    Returns:
      The process, and the folder that it writes to.
    """
    while True:
        out = fresh(target, f"{name}-stopped")
        process = target.start(command(target, name, out))
        harness.wait_for(process, lambda: processor_time(process.pid) >= moment, poll=0.01)  # noqa: B023
        if process.poll() is None:
            return process, out
        harness.ended(process)
        moment /= 2


def processor_time(process: int) -> float:
    """Return the processor time of a process in seconds, infinite if it has ended."""
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.inf
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def remaining(name: str, out: pathlib.Path) -> pathlib.Path:
    """Return the folder for the second call; an export that was finished is taken away."""
    if name == "export":
        harness.fresh(out / "model")
    return out


def full_disk(target: Workspace, name: str) -> Trial:
    """Run a command whose outputs do not fit on the disk, enlarge it and run it again.

    The disk is a tmpfs in a private mount namespace.
    """
    whole, _ = uninterrupted(target, name)
    disk, out = target.path / "disk", fresh(target, f"{name}-full")
    left = fresh(target, f"{name}-left")  # what is on the full disk
    disk.mkdir(exist_ok=True)
    run = shlex.join(command(target, name, disk / "out"))
    script = (
        f"mount -t tmpfs -o {FULL[name]} none {disk}; mkdir {disk}/out; {run}; echo status $?; "
    )
    script += (
        f"cp -r {disk}/out/. {left}; echo left; mount -o remount,size=64m,nr_inodes=1000 {disk}; "
    )
    script += f"{run}; echo status $?; cp -r {disk}/out/. {out}"
    done = harness.call(target, ["unshare", "-rm", "bash", "-c", script])
    full, last = (int(x.split()[1]) for x in done.output.splitlines() if x.startswith("status "))
    before = done.output.partition("left\n")[0]
    sentence = next((x for x in before.splitlines() if x.startswith("fedjax-lora: ")), "")
    return {
        "status": full,
        "reported": full == 2 and "cannot be written" in sentence and "Traceback" not in before,
        "whole_files": all(whole.get(path, x) == x for path, x in outputs(left).items()),
        "same": last == 0 and outputs(out) == whole,
    }
