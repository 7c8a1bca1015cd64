"""Tables of the options of tasks, for the documentation."""

from functools import partial

from experiments.tools.markdown import as_table
from fedjax_lora.core import registry
from fedjax_lora.data.datasets.registry import factories


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


BLOCKS = {
    f"options_of_{task}": partial(options, task)
    for task in ("file", "instructions", "conversations", "text")
}
"""The tables by the names of their blocks."""
