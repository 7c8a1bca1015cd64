"""Memory and output error of a base model stored in bfloat16, int8 or nf4."""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
