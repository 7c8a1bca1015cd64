"""Compile the rounds of `experiments.benchmarks.targets.points`, each in a process of its own.

Nothing is run: the numbers are the estimate's and the compiler's.

    python -m experiments.benchmarks.targets.scaling --minutes 60   # resumable
    python -m experiments.benchmarks.targets.report                 # the tables
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks.targets import RESULTS
from experiments.benchmarks.targets.points import POINTS, Point
from experiments.tools import json_lines

MODULE = "experiments.benchmarks.targets.scaling"
ROOT = pathlib.Path(__file__).parents[3]
RECORDS = "scaling.jsonl"


def compiled(point: Point) -> dict[str, Any]:
    """Estimate and compile a point in this process, which must be a fresh one.

    Returns:
      What the estimate and the compiler say; of a round that does not fit, what it needs.
    """
    from fedjax_lora.core.chips import CHIPS, parse_target
    from fedjax_lora.core.topology import prepare_environment, topology_devices

    prepare_environment()
    import jax

    from experiments.benchmarks.backbones import assets, run_config
    from fedjax_lora.core.target import compiling_for, target_of
    from fedjax_lora.runs import cost

    spec = parse_target(point.target)
    jax.config.update("jax_enable_compilation_cache", False)
    with compiling_for(target_of(topology_devices(spec), CHIPS[spec.chip].memory)):
        work = point.work(spec.count)
        outline = cost.outline_run(run_config(work), assets(work, weights=False))
        needs = cost.needs_of(outline)
        found = cost.compile_round(outline)
    return described(needs, found) | {
        "chips": spec.count,
        "jax": jax.__version__,
        "processor_seconds": time.process_time(),
    }


def described(needs: Any, found: Any) -> dict[str, Any]:
    """Return the numbers of an estimate and of what a compiler says, as JSON values."""
    record: dict[str, Any] = {
        "clients_at_once": needs.memory.clients_per_step,
        "estimated_bytes": needs.memory.total,
        "flops": needs.round_flops,
        "up": needs.up,
        "down": needs.down,
        "compile_seconds": found.seconds,
    }
    if hasattr(found, "needed"):
        return record | {"needed": found.needed, "available": found.available}
    return record | {
        "bytes": found.usage._asdict(),
        "total_bytes": found.usage.total,
        "collectives": {kind: list(each) for kind, each in found.collectives.items()},
        "step_seconds": found.step_seconds,
        "round_seconds": found.round_seconds,
    }


def measure(point: Point, limit: float) -> dict[str, Any]:
    """Compile a point in a process of its own, for at most ``limit`` seconds."""
    words = [sys.executable, "-m", MODULE, "--point", json.dumps(vars(point))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            words, check=False, env=environment, timeout=limit, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not compiled in {limit:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return {"error": last[:300]}
    return json.loads(done.stdout.splitlines()[-1])


def fill(
    file: pathlib.Path,
    *,
    minutes: float,
    limit: float,
    only: str = "",
    measure: Callable[[Point, float], dict[str, Any]] = measure,
) -> None:
    """Compile the points without a record, until the time is over.

    A point that was not compiled in its time is tried again by a later call with a longer one.

    Args:
      file: of the records.
      minutes: in which points are begun.
      limit: seconds of a point.
      only: words that the name of a point has to have.
      measure: compiles a point.
    """
    end = time.monotonic() + 60 * minutes
    done = json_lines.by_name(file)
    for point in POINTS:
        before = done.get(point.name, {"limit": 0.0, "error": ""})
        tried = "error" not in before or before["limit"] >= limit
        if tried or only not in point.name or time.monotonic() > end:
            continue
        record = {"name": point.name, "limit": limit} | measure(point, limit)
        json_lines.append(file, record)
        print(point.name, record.get("error", record.get("compile_seconds")), flush=True)


def main() -> None:
    """Compile all points, or print the record of one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=600, help="in which points are begun")
    parser.add_argument("--limit", type=float, default=1200, help="seconds of a point")
    parser.add_argument("--only", default="", help="only points whose name has these words")
    parser.add_argument("--point", help="this one, in this process")
    given = parser.parse_args()
    if given.point:
        print(json.dumps(compiled(Point(**json.loads(given.point)))))
    else:
        fill(RESULTS / RECORDS, minutes=given.minutes, limit=given.limit, only=given.only)


if __name__ == "__main__":
    main()
