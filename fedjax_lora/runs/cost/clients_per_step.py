"""Choose how many clients train at once from the memory of a device."""

import dataclasses
import math
from collections.abc import Callable

from fedjax_lora.core.target import current_target
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.cost.memory import Memory, memory_of
from fedjax_lora.runs.cost.outline import make_outline
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.setup import Setup

ROOM = 0.8
"""Share of a device's memory that the estimate may take: compilers need up to 1.25 times that."""


def choose_clients_per_step(
    config: RunConfig,
    assets: Assets,
    setup: Setup,
    *,
    together: int = 1,
    tell: Callable[[str], None] = lambda sentence: None,
) -> tuple[RunConfig, Setup]:
    """Choose how many clients train at once on an accelerator, unless the config says it.

    On a CPU, whose caches hold one client, and in modes ``loop`` and ``remote`` nothing changes,
    nor where the memory of the device is not known.

    Args:
      config: the run.
      assets: its data and model; the model's parameters may be shapes alone.
      setup: what is decided before anything is compiled.
      together: runs whose clients are trained at once.
      tell: is told the choice in a sentence.

    Returns:
      Config and setup with the number that was chosen, so that the run's record has it.
    """
    target, options = current_target(), config.execution
    if options.clients_per_step or setup.execution.mode in ("loop", "remote"):
        return config, setup
    if target.is_cpu or not target.memory:
        return config, setup
    one = dataclasses.replace(setup.execution, clients_per_step=1)
    memory = memory_of(make_outline(config, assets, setup._replace(execution=one)))
    count = clients_that_fit(_of_several(memory, together), ROOM * target.memory)
    tell(
        f"training {count} clients at a time, of {memory.cohort} on a device: chosen for "
        f"{target.memory / 1e9:.1f} GB of {target.kind}; --clients-per-step takes another number"
    )
    execution = dataclasses.replace(setup.execution, clients_per_step=count)
    chosen = dataclasses.replace(options, clients_per_step=count)
    return dataclasses.replace(config, execution=chosen), setup._replace(execution=execution)


def _of_several(memory: Memory, runs: int) -> Memory:
    """Return the memory of runs that are trained at once: all but the base is there for each."""
    parts = {name: runs * getattr(memory, name) for name in memory._fields}
    shared = {"base", "layers", "cohort", "clients_per_step"}
    return memory._replace(**{name: x for name, x in parts.items() if name not in shared})


def clients_that_fit(memory: Memory, available: float) -> int:
    """Return how many clients can train at once, in groups of about the same size; at least one.

    Args:
      memory: estimate for a device.
      available: bytes that the estimate may take.
    """
    fixed = memory.total - memory.clients_per_step * memory.per_client
    most = int((available - fixed) // max(memory.per_client, 1))
    most = min(max(most, 1), memory.cohort)
    return math.ceil(memory.cohort / math.ceil(memory.cohort / most))
