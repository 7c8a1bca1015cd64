"""Tables of the options of tasks and of the classes of devices, for the documentation."""

from functools import partial

from experiments.tools.markdown import as_table
from fedjax_lora.core import registry
from fedjax_lora.data.datasets.registry import factories
from fedjax_lora.federated.clock import DEVICE_CLASSES


def options(task: str) -> str:
    """Return a table of the options of a task."""
    rows = [
        (
            f"`{option.name}`",
            "needed" if option.default is None else f"`{option.default}`",
            option.meaning,
        )
        for option in registry.options(factories()[task])
    ]
    return as_table(("option", "default", "meaning"), rows)


def devices() -> str:
    """Return a table of the built-in classes of devices."""
    rows = [
        (
            f"`{name}`",
            f"{kind.peak / 1e9:g}",
            f"{kind.memory / 1e9:g}",
            f"{kind.down * 8 / 1e6:g} / {kind.up * 8 / 1e6:g}",
        )
        for name, kind in DEVICE_CLASSES.items()
    ]
    header = ("device", "peak in float32, GFLOP/s", "memory, GB", "down / up, Mbit/s")
    return as_table(header, rows)


BLOCKS = {
    f"options_of_{task}": partial(options, task)
    for task in ("file", "instructions", "conversations", "text")
} | {"devices": devices}
"""The tables by the names of their blocks."""
