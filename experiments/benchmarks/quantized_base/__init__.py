"""What a base stored in half, in int8 or in nf4 costs in memory, and what it does to the output."""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
