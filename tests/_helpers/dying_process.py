"""One process of a distributed run that may be killed at an exact moment.

``python dying_process.py ADDRESS COUNT NUMBER FOLDER PHASE VICTIM WAIT``; the process with the
number VICTIM writes the time to ``FOLDER.died`` when it reaches the phase, and is killed there. A
A VICTIM of -1 kills no process.
"""

import functools
import os
import pathlib
import signal
import sys
import time
from typing import Any

from fedjax_lora.core import cache, distributed, process_watch
from fedjax_lora.core.errors import InputError

PHASES = (
    "start", "rendezvous", "loading", "compiling", "round", "evaluation", "checkpoint", "end",
    "interrupted",
)  # fmt: skip


def die(folder: str, phase: str) -> None:
    """Write down the moment, and be killed (or interrupted, as by Ctrl-C)."""
    pathlib.Path(f"{folder}.died").write_text(f"{time.time()}")
    os.kill(os.getpid(), signal.SIGINT if phase == "interrupted" else signal.SIGKILL)
    time.sleep(60)


def dying(function: Any, kill: Any) -> Any:
    """The function, but for the process that it kills."""

    @functools.wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        kill()
        return function(*args, **options)

    return wrapper


def evaluating(train: Any, kill: Any) -> Any:
    """The training of a round, after which this process is killed as it evaluates."""

    @functools.wraps(train)
    def wrapper(run: Any, *args: Any) -> Any:
        object.__setattr__(run, "evaluate", kill)  # of a frozen record
        return train(run, *args)

    return wrapper


def arm(phase: str, kill: Any) -> None:
    """Kill this process when it comes to the function of a phase."""
    import jax

    from fedjax_lora.runs import build, checkpoints

    if phase == "rendezvous":
        process_watch.ProcessWatch.connect = dying(process_watch.ProcessWatch.connect, kill)
    elif phase == "evaluation":
        build.Run.train = evaluating(build.Run.train, kill)
    elif phase == "checkpoint":
        checkpoints.CheckpointManager._write = dying(checkpoints.CheckpointManager._write, kill)
    elif phase == "end":
        jax.distributed.shutdown = dying(jax.distributed.shutdown, kill)


def compiling(kill: Any) -> None:
    """Kill this process when it hands its next program to the compiler."""
    import jax

    def listen(event: str, seconds: float, **labels: Any) -> None:
        if "jaxpr_to_mlir_module" in event:
            kill()

    jax.monitoring.register_event_duration_secs_listener(listen)


def main(
    address: str, count: str, number: str, folder: str, phase: str, victim: str, wait: str
) -> None:
    """Run the tiny run of the tests to its end, or to the phase."""
    kill: Any = lambda *args: die(folder, phase)  # noqa: E731
    mine = phase if number == victim else ""
    if mine == "start":
        kill()
    arm(mine, kill)
    cache.enable_compilation_cache()
    with distributed.initialized(address, int(count), int(number), wait=float(wait)):
        import fedjax_lora as fl
        from tests._helpers import tiny_runs

        if mine in ("loading", "interrupted"):
            kill()
        changes = {
            "execution.mode": "sharded", "execution.eval_every": 2,
            "federation.clients": 10, "federation.cohort": 6,
        }  # fmt: skip
        config = tiny_runs.change(tiny_runs.CONFIG, changes)
        assets = tiny_runs.assets()
        if mine == "compiling":
            distributed.check_same = dying(distributed.check_same, lambda: compiling(kill))
        there = (pathlib.Path(folder) / "config.json").exists()
        on_round = kill if mine == "round" else lambda record: None
        fl.run(config, out=folder, resume=there, assets=assets, on_round=on_round)


if __name__ == "__main__":
    # A shell starts what it runs in the background with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(*sys.argv[1:])
    except InputError as error:  # the command line's answer
        print(f"fedjax-lora: {error}", file=sys.stderr)
        sys.exit(2)
