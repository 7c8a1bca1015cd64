"""Write the tables: ``python -m experiments.papers.open_claims.report``."""

from experiments.papers.open_claims import COMPARISONS, STUDY
from experiments.tools.tuned import write

if __name__ == "__main__":
    write(STUDY, COMPARISONS)
