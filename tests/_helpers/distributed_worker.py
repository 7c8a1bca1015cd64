"""One process of a distributed run of a tiny model: runs test scenarios and writes their results.

``python distributed_worker.py ADDRESS COUNT NUMBER FOLDER SCENE...``; a COUNT of 1
starts no others.
"""

import contextlib
import json
import pathlib
import sys
from typing import Any

import fedjax_lora as fl
from fedjax_lora.core import distributed, errors
from fedjax_lora.runs import compilation

SCENES: dict[str, dict[str, Any]] = {
    "whole": {},
    "stopped": {"out": "parted", "stop": True},
    "resumed": {"out": "parted", "resume": True},
    "finished": {"out": "parted", "resume": True},
    "base in parts": {
        "federation.method": "flora", "execution.mesh": (4, 2), "federation.heads": "local",
        "out": None,
    },
    "not divisible": {"execution.mesh": (3, 2)},
    "another seed": {"seed": 1},
    "not sharded": {"execution.mode": "vmap"},
    "taken": {"out": "whole"},
    "unwritable": {"out": "/proc/nowhere"},
}  # fmt: skip


def play(scene: str, folder: pathlib.Path, assets: Any, shared: Any) -> dict[str, Any]:
    """Run a scenario; the first process writes to ``folder``."""
    import dataclasses

    import jax

    from tests._helpers import tiny_runs

    changes = dict(SCENES[scene])
    out, resume = changes.pop("out", scene), changes.pop("resume", False)
    stopping, seed = changes.pop("stop", False), changes.pop("seed", 0) * jax.process_index()
    base = {"execution.mode": "sharded", "federation.clients": 10, "federation.cohort": 6}
    config = dataclasses.replace(tiny_runs.change(tiny_runs.CONFIG, base | changes), seed=seed)
    done = []

    def stop() -> bool:
        last = jax.process_index() == jax.process_count() - 1  # only one of them is asked to
        return stopping and last and len(done) == 1

    try:
        made = fl.run(
            config, out=out and folder / out, resume=resume, assets=assets, programs=shared,
            on_round=done.append, stop=stop,
        )  # fmt: skip
    except (errors.InputError, errors.Stopped) as error:
        return {"error": f"{error}"}
    adapter = jax.tree.map(lambda x: jax.device_get(x).tolist(), made.adapter)
    kernels = jax.tree.map(lambda x: jax.device_get(x).tolist(), made.state.server.kernels)
    return {"history": made.records, "adapter": adapter, "kernels": kernels}


def main(address: str, count: str, number: str, folder: str, *scenes: str) -> None:
    """Run the scenarios; the results are in a JSON file beside the folder, not in a pipe.

    (A pipe that is not read yet would stop this process, and the others with it.)
    """
    several = distributed.initialized(address, int(count), int(number))
    with several if int(count) > 1 else contextlib.nullcontext():
        from tests._helpers import tiny_runs  # makes arrays, and with them devices

        assets, shared = tiny_runs.assets(), compilation.programs()
        found = {scene: play(scene, pathlib.Path(folder), assets, shared) for scene in scenes}
        pathlib.Path(f"{folder}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
