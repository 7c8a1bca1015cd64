"""Run all small runs of the paper studies; hours on two CPU cores.

Commands:

    python -m experiments.tools.small --data-dir DATA                     # resumable
    python -m experiments.tools.small --data-dir DATA --only byun_lee
    python -m experiments.tools.plan                          # numbers of runs, processor hours
    python -m experiments.tools.write_reports                 # READMEs from the result files
"""

import sys

import tyro

from experiments.tools.registry import STUDIES
from experiments.tools.runner import main


def small(data_dir: str, only: tuple[str, ...] = (), together: int = 1) -> int:
    """Run the small runs that are not finished yet.

    Args:
      data_dir: folder with the tasks' official files.
      only: names of the studies to run; all by default.
      together: runs that are trained at once, of those that differ in seed and learning rate alone.
    """
    return main(STUDIES, "small", data_dir, only, together=together)


if __name__ == "__main__":
    sys.exit(tyro.cli(small))
