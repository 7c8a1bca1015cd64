"""All small runs of the reruns of papers, in hours on two CPU cores.

Commands:

    python -m experiments.tools.small --data-dir DATA                     # resumable at any time
    python -m experiments.tools.small --data-dir DATA --only byun_lee
    python -m experiments.tools.plan                                      # how many, and how long
    python -m experiments.tools.write_reports  # the READMEs from the files
"""

import sys

import tyro

from experiments.tools.registry import STUDIES
from experiments.tools.runner import main


def small(data_dir: str, only: tuple[str, ...] = ()) -> int:
    """Run what is missing of the small runs.

    Args:
      data_dir: folder with the tasks' official files.
      only: names of the studies to run; all by default.
    """
    return main(STUDIES, "small", data_dir, only)


if __name__ == "__main__":
    sys.exit(tyro.cli(small))
