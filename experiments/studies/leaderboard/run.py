"""Run the leaderboard; see `experiments.studies.leaderboard`."""

import sys

import tyro

from experiments.studies.leaderboard import STUDY
from experiments.tools.runner import main


def run(data_dir: str) -> int:
    """Tune and run every method; what has a record is not run again.

    Args:
      data_dir: folder with the tasks' official files.
    """
    return main((STUDY,), "small", data_dir)


if __name__ == "__main__":
    sys.exit(tyro.cli(run))
