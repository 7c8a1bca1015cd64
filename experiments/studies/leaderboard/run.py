"""Run the leaderboard; see `experiments.studies.leaderboard`."""

import sys

import tyro

from experiments.studies.leaderboard import SEEDS, STUDY
from experiments.tools.runner import main


def run(data_dir: str, together: int = len(SEEDS), most: int | None = None) -> int:
    """Tune and run every method; what has a record is not run again.

    Args:
      data_dir: folder with the tasks' official files.
      together: runs that are trained at once, of those that differ in seed and learning rate alone.
      most: runs of this call, by default all.
    """
    return main((STUDY,), "small", data_dir, together=together, most=most)


if __name__ == "__main__":
    sys.exit(tyro.cli(run))
