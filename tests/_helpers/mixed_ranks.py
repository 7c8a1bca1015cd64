"""Cohorts of mixed ranks that every method takes."""

from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Cohort
from tests._helpers.cohorts import GLOBAL, make_cohort, ranks_for

WEIGHT = [30.0, 5.0, 0.0, 17.0, 80.0, 2.0]


def cohort_for(name: str, spec: LoraSpec = GLOBAL) -> Cohort:
    """Mixed ranks and an absent client, or equal ranks for those who take nothing else."""
    return make_cohort(spec, ranks_for(name, [1, 2, 3, 4, 2, 1], 3), WEIGHT)
