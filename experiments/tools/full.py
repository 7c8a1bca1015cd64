"""The papers' models and data, for accelerators; models and tasks come from the hub.

Commands:

    python -m experiments.tools.full --only hlora                         # resumable at any time
"""

import sys

import tyro

from experiments.tools.registry import STUDIES
from experiments.tools.runner import main


def full(data_dir: str | None = None, only: tuple[str, ...] = ()) -> int:
    """Run what is missing of the full runs.

    Args:
      data_dir: folder with the tasks' official files, instead of the hub.
      only: names of the studies to run; all by default.
    """
    return main(STUDIES, "full", data_dir, only)


if __name__ == "__main__":
    sys.exit(tyro.cli(full))
