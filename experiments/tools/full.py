"""Run the full runs: the papers' models and data, for accelerators.

Models and tasks are loaded from the Hugging Face hub.

Commands:

    python -m experiments.tools.full --only hlora                         # resumable
"""

import sys

import tyro

from experiments.tools.registry import STUDIES
from experiments.tools.runner import main


def full(data_dir: str | None = None, only: tuple[str, ...] = (), together: int = 1) -> int:
    """Run the full runs that are not finished yet.

    Args:
      data_dir: folder with the tasks' official files; by default they come from the hub.
      only: names of the studies to run; all by default.
      together: runs that are trained at once, of those that differ in seed and learning rate alone.
    """
    return main(STUDIES, "full", data_dir, only, together=together)


if __name__ == "__main__":
    sys.exit(tyro.cli(full))
