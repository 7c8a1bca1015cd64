"""Measure; see `experiments.benchmarks.accelerators`."""

import argparse
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarks.accelerators import PARTS, RECORDS, RESULTS, TOTAL_SECONDS
from experiments.tools import json_lines

MODULE = "experiments.benchmarks.accelerators.run"
ROOT = pathlib.Path(__file__).parents[3]


def cases_of(part: str, *, tiny: bool) -> Any:
    """Return the cases of a part: pairs of a name and a function that measures a record."""
    from experiments.benchmarks.accelerators import kernels, peft_loop, rounds

    modules = {name: rounds for name in ("encoder", "decoder", "sharded")}
    make = getattr({"peft": peft_loop}.get(part) or modules.get(part, kernels), part)
    return make(tiny=tiny)


def play(part: str, file: pathlib.Path, *, tiny: bool) -> None:
    """Measure the cases of a part that have no result; one that fails does not end the others.

    Args:
      part: a key of `PARTS`.
      file: of the results.
      tiny: rehearse.
    """
    done = finished(file)
    for name, measure in cases_of(part, tiny=tiny):
        record: dict[str, Any] = {"name": f"{part}/{name}"}
        if record["name"] in done:
            continue
        try:
            record |= measure()
        except Exception as error:  # whatever a compiler or a card says is a result
            words = traceback.format_exception_only(error)[-1].strip()
            record |= {"error": words[:500]}
        json_lines.append(file, record | about())
        print(record["name"], record.get("seconds", record.get("error")), flush=True)


def about() -> dict[str, Any]:
    """Return the device and versions of a record."""
    import jax

    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def finished(file: pathlib.Path) -> Mapping[str, Any]:
    """Return the results by name, those left out that are errors."""
    return {name: r for name, r in json_lines.by_name(file).items() if "error" not in r}


def measure_all(
    file: pathlib.Path,
    *,
    tiny: bool,
    total: float = TOTAL_SECONDS,
    parts: Mapping[str, float] = PARTS,
    command: Sequence[str] = (sys.executable, "-m", MODULE),
) -> None:
    """Give every part a process and its time, until the time of all is over.

    A part that ends early leaves its time to the others.

    Args:
      file: of the results.
      tiny: rehearse.
      total: seconds of all parts.
      parts: the most seconds of each; rehearsals have no limit but ``total``.
      command: program of a part, which gets its arguments.
    """
    end = time.monotonic() + total
    words = ["--file", str(file), *(["--rehearse"] if tiny else [])]
    for part, most in parts.items():
        left = end - time.monotonic()
        if left < 1:
            json_lines.append(file, {"name": f"{part}/part", "error": "no time was left"})
            continue
        _watch([*command, "--part", part, *words], part, file, left if tiny else min(most, left))


def _watch(command: Sequence[str], part: str, file: pathlib.Path, most: float) -> None:
    """Run a part in a process; if it does not end well, say so in the results."""
    environment = os.environ | {"PYTHONPATH": _path()}
    try:
        status = subprocess.run(command, check=False, env=environment, timeout=most).returncode
        problem = f"ended with status {status}" if status else None
    except subprocess.TimeoutExpired:
        problem = f"took more than {most:.0f} s"
    if problem:
        json_lines.append(file, {"name": f"{part}/part", "error": problem})
        print(part, problem, flush=True)


def _path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def main() -> None:
    """Measure all parts, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, on any machine")
    parser.add_argument("--file", type=pathlib.Path, help="of the results")
    parser.add_argument("--part", choices=[*PARTS], help="only this one, in this process")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="of all parts")
    given = parser.parse_args()
    name = "rehearsal.jsonl" if given.rehearse else RECORDS
    file = given.file or (RESULTS / name)
    if given.part:
        play(given.part, file, tiny=given.rehearse)
    else:
        measure_all(file, tiny=given.rehearse, total=given.seconds)


if __name__ == "__main__":
    main()
