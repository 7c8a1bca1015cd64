"""Run the comparison; see `experiments.studies.instruction_tuning`."""

import sys

import tyro

from experiments.studies.instruction_tuning import STUDY
from experiments.tools.runner import main


def run(data_dir: str, models_dir: str) -> int:
    """Tune and run every method.

    Args:
      data_dir: folder that holds dolly_alpaca_fed10/.
      models_dir: folder that holds stories260k/.
    """
    return main((STUDY,), "small", data_dir, models_dir=models_dir)


if __name__ == "__main__":
    sys.exit(tyro.cli(run))
