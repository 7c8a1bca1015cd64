"""Hundreds of broken inputs, each with one thing wrong, and how the command line answers them.

A case writes into a well-formed run (`good`) and names the words to call ``fedjax-lora run`` with.
Each has to end with status 2 and one sentence, without a traceback, an output folder, a wait or
much memory. Random damage to the same files (`damage`) may go unnoticed, but may not end in
anything else either.

    python -m experiments.robustness.malformed_input.run  # a minute; writes results/summary.json
    python -m experiments.robustness.malformed_input.report     # the README's sentence
"""

import pathlib

from experiments.robustness.malformed_input import (
    adapters,
    checkpoints,
    settings,
    tables,
    tokenizers,
    weights,
)
from experiments.robustness.malformed_input.case import Case

RESULTS = pathlib.Path(__file__).parent / "results"


def cases() -> list[Case]:
    """All of them, always the same."""
    families = (tables, weights, checkpoints, tokenizers, adapters, settings)
    return [case for family in families for case in family.cases()]
