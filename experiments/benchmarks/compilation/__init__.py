"""What is compiled, how often, and what a second start of a run reads from the cache.

A run as ``fedjax-lora run`` executes it, in a process that records JAX's compilation events: every
program's name, seconds, and whether it was read from the persistent cache. The first start has an
empty cache, the second one the cache of the first. Every round has different clients, ranks and
batches.

The round is one program. It contains the step once per batch shape, as branches of a switch that
is selected by data.

    python -m experiments.benchmarks.compilation.run --data-dir DATA    # resumable
    python -m experiments.benchmarks.compilation.report             # table and figure
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
RECORDS = "starts.jsonl"
STARTS = ("cold", "warm")
