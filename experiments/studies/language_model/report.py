"""Write the tables: ``python -m experiments.studies.language_model.report``."""

from experiments.studies.language_model import COMPARISONS, STUDY
from experiments.tools.tuned import write

if __name__ == "__main__":
    write(STUDY, COMPARISONS)
