"""The machines' processes: the engine's server and clients, and a job from its start to its end."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import Record
from fedjax_lora.deploy import kits
from fedjax_lora.deploy.spec import FederationSpec
from fedjax_lora.runs.folder import TIMING, read_lines
from fedjax_lora.runs.folder_names import METRICS

STATUS = "status.json"
"""File in which a job tells how it has ended, in the folder of the federation."""

STEP = 0.5
"""Seconds between looks at a run."""

ENDED = (
    "its process has ended without a word; see the server's log, start the server again if it does "
    "not run, and then the run with --resume."
)
"""What is told of a job that could tell nothing itself."""


def server_command(kit: pathlib.Path) -> list[str]:
    """The engine's server, in the foreground, with its jobs in its own kit."""
    kits.keep_jobs(kit.resolve())
    return _command("server.server_train", kit, "fed_server.json", [])


def client_command(kit: pathlib.Path, name: str) -> list[str]:
    """The engine's client of a site, in the foreground."""
    return _command("client.client_train", kit, "fed_client.json", [f"uid={name}"])


def _command(module: str, kit: pathlib.Path, config: str, more: list[str]) -> list[str]:
    settings = ["secure_train=true", *more, f"org={kits.ORGANISATION}", "config_folder=config"]
    program = [sys.executable, "-u", "-m", f"nvflare.private.fed.app.{module}"]
    return [*program, "-m", str(kit.resolve()), "-s", config, "--set", *settings]


@contextlib.contextmanager
def processes(
    commands: Mapping[str, list[str]], logs: pathlib.Path
) -> Iterator[dict[str, subprocess.Popen]]:
    """Run commands in the background until the block ends; each writes to a log of its name."""
    logs.mkdir(parents=True, exist_ok=True)
    started: dict[str, subprocess.Popen] = {}
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("wb") as file:
                started[name] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a client starts further processes
                )
        yield started
    finally:
        for process in started.values():
            stop(process)


def stop(process: subprocess.Popen) -> None:
    """End a process and those that it has started, in sessions of their own too."""
    import psutil  # comes with the engine

    started: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    for how, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        for one in psutil.wait_procs(started, timeout=1)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(how)
    psutil.wait_procs(started, timeout=5)
    process.wait()


def play(
    folder: pathlib.Path,
    spec: FederationSpec,
    out: pathlib.Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    patience: int = 600,
    on_round: Callable[[Record], object] = lambda record: None,
    is_alive: Callable[[], bool] = lambda: True,
) -> None:
    """Submit the job of a federation and wait for its end.

    Args:
      folder: of the federation.
      spec: the federation.
      out: the run folder, on the server's machine.
      resume: continue the run in ``out``.
      overwrite: replace it.
      patience: seconds that server and sites have to be there at the beginning.
      on_round: called with each round's record.
      is_alive: whether the processes that the job needs still run.

    Raises:
      InputError: the server cannot be reached, or the run has failed, with its reason.
    """
    from nvflare.fuel.flare_api.flare_api import new_secure_session  # pyright: ignore[reportMissingImports]

    status = (folder / STATUS).resolve()
    status.unlink(missing_ok=True)
    job = kits.write_job(
        folder / "job",
        spec,
        {
            "task": kits.server_task(folder),
            "out": str(out.resolve()),
            "status": str(status),
            "resume": resume,
            "overwrite": overwrite,
            "patience": patience,
        },
    )
    seen = len(read_lines(out / METRICS)) if resume else 0
    session = _session(new_secure_session, kits.find(folder, spec)["admin"], patience, is_alive)
    try:
        _wait_for_sites(session, spec, patience, is_alive)
        number = session.submit_job(str(job.resolve()))
        _follow(session, number, status, out, seen, on_round, is_alive)
    finally:
        session.close()


def _session(
    connect: Callable[..., Any],
    admin: pathlib.Path,
    patience: int,
    is_alive: Callable[[], bool],
) -> Any:
    """A session of the administrator, as soon as the server answers."""
    end, problem = time.monotonic() + patience, ""
    while time.monotonic() < end and is_alive():
        try:
            with contextlib.redirect_stdout(None):
                return connect(kits.ADMIN, str(admin.resolve()), timeout=5.0)
        except Exception as error:  # the engine has no common class of errors
            problem = f"{type(error).__name__}: {error}"
            time.sleep(STEP)
    raise InputError(
        f"The server does not answer ({problem or 'its process has ended'}); start it with "
        "fedjax-lora deploy serve."
    )


def _wait_for_sites(
    session: Any, spec: FederationSpec, patience: int, is_alive: Callable[[], bool]
) -> None:
    """Wait until all sites are connected, or as many as a round needs if some never come."""
    end, there = time.monotonic() + patience, set()
    while time.monotonic() < end and is_alive():
        info = session.get_system_info()
        there = {client.name for client in info.client_info}
        if there >= set(spec.sites):
            return
        time.sleep(STEP)
    if len(there) < spec.least:
        raise InputError(
            f"{len(there)} of {len(spec.sites)} sites are connected and {spec.least} must be; "
            "start them with fedjax-lora client."
        )


def _follow(
    session: Any,
    number: str,
    status: pathlib.Path,
    out: pathlib.Path,
    seen: int,
    on_round: Callable[[Record], object],
    is_alive: Callable[[], bool],
) -> None:
    """Report the rounds of a job until it ends.

    Raises:
      InputError: it has failed.
    """
    asked = time.monotonic()
    while True:
        ended = status.exists() or not is_alive()
        times = read_lines(out / TIMING)
        # The times of a round are written after its record.
        records = [a | b for a, b in zip(read_lines(out / METRICS), times, strict=False)]
        for record in records[seen:]:
            on_round(record)
        seen = max(seen, len(records))
        if ended:
            break
        if time.monotonic() > asked + 10:
            asked = time.monotonic()
            if _has_finished(session, number) and not status.exists():
                time.sleep(STEP)
                break
        time.sleep(STEP)
    _raise_failure(status)


def _has_finished(session: Any, number: str) -> bool:
    """Whether the engine has ended a job.

    Raises:
      InputError: the server does not answer.
    """
    try:
        meta = session.get_job_meta(number)
    except Exception as error:  # the engine has no common class of errors
        raise InputError(
            f"The server does not answer any more ({type(error).__name__}); start it again with "
            "fedjax-lora deploy serve, and the run with --resume."
        ) from error
    return str(meta.get("status", "")).startswith("FINISHED")


def _raise_failure(status: pathlib.Path) -> None:
    try:
        values = json.loads(status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = {"state": "failed", "error": ENDED}
    if values["state"] != "finished":
        raise InputError(f"The federation has stopped: {values['error']}")
