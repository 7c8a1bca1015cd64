"""One of several processes is killed: the others say which one, and end at once."""

import itertools
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import pytest

from tests._helpers import dying_process, tiny_runs
from tests._helpers.dying_process import PHASES
from tests._helpers.free_port import free_port

ROOT = pathlib.Path(__file__).parents[3]
WAIT = 40.0
SECONDS = 15.0
"""Until the others have ended, on a machine that does other things too; 0.2 or so of these are
needed. In phase ``start`` the others only know that no process comes, and the first none in
phase ``rendezvous``."""


def play(folder: pathlib.Path, phase: str, victim: int, count: int) -> list[tuple]:
    """Status, error output and time of the end of every process."""
    address, script = f"localhost:{free_port()}", dying_process.__file__
    # With a proxy JAX's client is connected to process 0 directly, see `coordinator_relay`.
    kept = {name: value for name, value in os.environ.items() if "_proxy" not in name.lower()}
    environment = kept | {
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",  # as the command line sets it
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": str(ROOT),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    files = [folder.parent / f"{folder.name}.{n}" for n in range(count)]
    started = []
    for n, file in enumerate(files):
        words = [address, str(count), str(n), str(folder), phase, str(victim), str(WAIT)]
        with file.open("w") as errors:
            started.append(
                subprocess.Popen([sys.executable, script, *words], env=environment, stderr=errors)
            )
    ended: dict[int, float] = {}
    deadline = time.time() + 400
    try:
        while len(ended) < count and time.time() < deadline:
            ended |= {
                n: time.time()
                for n, process in enumerate(started)
                if n not in ended and process.poll() is not None
            }
            time.sleep(0.05)
        assert len(ended) == count, f"processes {set(range(count)) - ended.keys()} hang"
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, files[n].read_text(), ended[n]) for n, p in enumerate(started)]


def said(errors: str) -> list[str]:
    """Lines of error output, without the report that Gloo's connections exist."""
    return [line for line in errors.splitlines() if not line.startswith("[Gloo] Rank")]


def check(folder: pathlib.Path, phase: str, victim: int, count: int) -> None:
    """Kill one process and look at the others."""
    left = play(folder, phase, victim, count)
    died = float(pathlib.Path(f"{folder}.died").read_text())
    waits = {"start": WAIT + 30, "rendezvous": WAIT + 5 if victim else SECONDS}
    allowed = waits.get(phase, SECONDS)
    for number, (status, errors, ended) in enumerate(left):
        if number == victim:
            assert status == (130 if phase == "interrupted" else -9)
            continue
        print(f"{phase}: process {number} ended after {ended - died:.1f} s: {errors}")
        assert ended - died < allowed
        assert status in (1, 2), errors
        line, *others = said(errors)
        # XLA's coordinator, which process 0 runs, logs that it is closed before a process came.
        assert not others or (phase == "start" and number == 0), errors
        advice = ("start all processes again.", "check that they can reach the first.")
        assert line.startswith("fedjax-lora: ") and line.endswith(advice)
        if phase not in ("start", "rendezvous"):
            what = "was stopped by Ctrl-C" if phase == "interrupted" else "has died"
            assert re.search(rf"Process {victim} of {count}, on \S+ \(pid \d+\), {what}", line)


def test_survivors_name_the_killed_process(tmp_path):
    """While they wait for it: the dead one is not the first, which tells the third."""
    check(tmp_path / "run", "loading", 1, 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    for status, errors, _ in play(folder, "none", -1, 2):
        assert status == 0, errors
    return tiny_runs.left(folder)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("phase", "victim"),
    [
        (phase, victim)
        for phase, victim in itertools.product(PHASES, (1, 0))
        if (phase, victim) != ("checkpoint", 1)  # which the first alone writes
    ],
)
def test_process_death_in_every_phase_ends_the_others_and_the_run_resumes(
    phase, victim, whole, tmp_path
):
    """A run of which nothing has been written is an ordinary one when it is started again."""
    folder = tmp_path / "run"
    check(folder, phase, victim, 2)
    if not (folder / "config.json").exists():
        assert phase in PHASES[: PHASES.index("round")] or phase == "interrupted"
        return
    for status, errors, _ in play(folder, "none", -1, 2):
        assert status == 0, errors
    assert tiny_runs.left(folder) == whole


ALONE = """
import sys
from fedjax_lora.core import distributed
with distributed.initialized(sys.argv[1], 2, 0, wait=10):
    pass
"""


def test_coordinator_listens_only_on_the_given_address():
    """127.0.0.2 is this machine too, and would be served by one that listens on all interfaces."""
    port = free_port()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", ALONE, f"127.0.0.1:{port}"]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        assert process.poll() is None, "it never listened"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 5)
    finally:
        process.kill()
        process.wait()
