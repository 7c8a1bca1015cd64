"""Run the comparisons; see `experiments.papers.open_claims`."""

import sys

import tyro

from experiments.papers.open_claims import SEEDS, STUDY
from experiments.tools.runner import main


def run(data_dir: str, together: int = len(SEEDS), most: int | None = None) -> int:
    """Tune and run every arm; what has a record is not run again.

    Args:
      data_dir: folder with the tasks' official files.
      together: runs that are trained at once, of those that differ in seed and learning rate alone.
      most: runs of this call, by default all.
    """
    return main((STUDY,), "small", data_dir, together=together, most=most)


if __name__ == "__main__":
    sys.exit(tyro.cli(run))
