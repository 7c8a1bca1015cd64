"""Hundreds of malformed inputs, each with one defect, and the answers of the command line.

A case changes files of a valid run (`valid`) and has arguments for ``fedjax-lora run``. Each has to
end with status 2 and one sentence that names the defect (`expected`), without a traceback, an
output folder, a delay or much memory. Random damage to the same files (`damage`) may also be
accepted.

    python -m experiments.robustness.malformed_input.run  # three minutes; writes summary.json
    python -m experiments.robustness.malformed_input.run --file verdicts.jsonl  # can go on later
    python -m experiments.robustness.malformed_input.report     # summary
"""

import pathlib

from experiments.robustness.malformed_input import (
    adapters,
    checkpoints,
    expected,
    settings,
    tables,
    tokenizers,
    weights,
)
from experiments.robustness.malformed_input.case import Case

RESULTS = pathlib.Path(__file__).parent / "results"


def cases() -> list[Case]:
    """Generate all cases; deterministic."""
    families = (tables, weights, checkpoints, tokenizers, adapters, settings)
    return [
        case._replace(says=expected.says(case.family, case.name))
        for family in families
        for case in family.cases()
    ]
