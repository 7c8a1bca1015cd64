"""One process whose memory is watched: ``python -m experiments.explain.watch NAME DATA MODEL``."""

import gc
import json
import pathlib
import sys

import jax

from experiments.explain import WATCHED, small
from fedjax_lora import explain, models
from fedjax_lora.cache import keep_compiled_programs
from fedjax_lora.experiment import load_assets, prepare

STATUS = pathlib.Path("/proc/self/status")


def resident(field: str) -> int:
    """Bytes by ``/proc``: ``VmRSS`` now, ``VmHWM`` at most since `forget`."""
    (line,) = (x for x in STATUS.read_text().splitlines() if x.startswith(field))
    return 1024 * int(line.split()[1])


def forget() -> None:
    """Begin a new high-water mark."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def main(name: str, data_dir: str, model: str) -> None:
    """Train two rounds; the second is watched, so that nothing of the compiler's is counted."""
    config = small(**WATCHED[name], data_dir=data_dir, model=model)
    keep_compiled_programs()
    foretold = explain.needs(config, load_assets(config, weights=False))
    # What importing, tracing and a first compilation leave behind is no part of a run's memory.
    jax.block_until_ready(models.tiny(family="llama", num_labels=None).params)
    gc.collect()
    before = resident("VmRSS")
    ready = prepare(config, load_assets(config))
    key, state = jax.random.key(0), ready.state
    for t in range(2):
        plan = ready.federation.plan(t, ready.rank, 1e-3)
        forget()
        state, seen = ready.round_fn(ready.base, ready.data, state, plan, key)
        jax.block_until_ready((state, seen))
    took = resident("VmHWM") - before
    print(
        json.dumps(
            {"foretold": foretold.memory.total, "took": took, "parts": foretold.memory._asdict()}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
