"""Cost of a checkpoint: time that the run waits, and processor time of the whole process.

python -m experiments.robustness.interruptions.cost
"""

import dataclasses
import json
import pathlib
import tempfile
import time

import jax
import numpy as np

from experiments.robustness.interruptions import RESULTS
from fedjax_lora.core import atomic_io
from fedjax_lora.runs import checkpoints
from fedjax_lora.runs.build import Assets, build, load_assets
from fedjax_lora.runs.checkpoints.checkpoint import arrays
from fedjax_lora.runs.config import RunConfig, demo

TIMES = 20
METHODS = {
    "fed_plora": {},
    "fed_plora with a server Adam": {"server_optimizer": "adam"},
    "flora": {"method": "flora"},
}


def get_config(name: str) -> RunConfig:
    """Return the demo with larger ranks and one of `METHODS`."""
    config = demo()
    options = {"ranks": "tiers(ranks=[4, 8, 16, 32])"} | METHODS[name]
    return dataclasses.replace(config, federation=dataclasses.replace(config.federation, **options))


def measured(config: RunConfig, assets: Assets, folder: pathlib.Path) -> dict[str, float]:
    """Measure checkpoints of the initial state; returns medians."""
    run = build(config, assets)
    progress, waits, processor = run.begin(), [], []
    with checkpoints.CheckpointManager(folder, run.about, keep=2) as manager:
        for n in range(1, TIMES + 1):
            progress = progress._replace(round=n)
            history = [{"round": k + 1} for k in range(n)]
            clock, used = time.perf_counter(), time.process_time()
            manager.save(progress, history)
            waits.append(time.perf_counter() - clock)
            manager.wait()
            processor.append(time.process_time() - used)
    newest = checkpoints.latest(folder)
    assert newest is not None
    on_disk = sum(path.stat().st_size for path in newest.path.rglob("*") if path.is_file())
    return {
        "arrays_mb": sum(x.nbytes for x in jax.tree.leaves(arrays(progress))) / 1e6,
        "disk_mb": on_disk / 1e6,
        "wait_ms": 1e3 * float(np.median(waits)),
        "cpu_ms": 1e3 * float(np.median(processor)),
    }


def main() -> None:
    """Measure all of `METHODS`."""
    assets, found = load_assets(demo()), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in METHODS:
            found[name] = measured(get_config(name), assets, pathlib.Path(folder) / name)
            print(name, found[name], flush=True)
    atomic_io.write(RESULTS / "cost.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
