"""Run the comparison; see `experiments.studies.language_model`."""

import sys

import tyro

from experiments.studies.language_model import STUDY
from experiments.tools.runner import main


def run(data_dir: str, most: int | None = None) -> int:
    """Tune and run every method; what has a record is not run again.

    Args:
      data_dir: folder that holds dolly_alpaca_fed10/.
      most: runs of this call, by default all.
    """
    return main((STUDY,), "small", data_dir, most=most)


if __name__ == "__main__":
    sys.exit(tyro.cli(run))
