"""Run the comparisons; see `experiments.papers.open_claims`."""

import sys

from experiments.papers.open_claims import SEEDS, STUDY
from experiments.tools.runner import command

if __name__ == "__main__":
    sys.exit(command(STUDY, together=len(SEEDS)))
