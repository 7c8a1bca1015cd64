"""Run the leaderboard; see `experiments.studies.leaderboard`."""

import sys

from experiments.studies.leaderboard import SEEDS, STUDY
from experiments.tools.runner import command

if __name__ == "__main__":
    sys.exit(command(STUDY, together=len(SEEDS)))
