"""Cohorts of mixed ranks that every method takes."""

import numpy as np
from cohorts import GLOBAL, make_cohort

from fedjax_lora import methods
from fedjax_lora.adapters import Template
from fedjax_lora.errors import InputError
from fedjax_lora.methods import Cohort

WEIGHT = [30.0, 5.0, 0.0, 17.0, 80.0, 2.0]


def cohort_for(name: str, template: Template = GLOBAL) -> Cohort:
    """Mixed ranks and an absent client, or equal ranks for those who take nothing else."""
    rank = np.array([1, 2, 3, 4, 2, 1])
    try:
        methods.make(name, template).check(rank)
    except InputError:
        rank = np.full(len(rank), 3)
    return make_cohort(template, rank, WEIGHT)
