"""What is compiled, how often, and what a second start of the same run finds in the cache.

A run as ``fedjax-lora run`` executes it, in a process that listens to what JAX says of its
compiler: each program by name, its seconds, and whether it came from the persistent cache. The
first start finds an empty cache, the second one what the first has left. The rounds have other
clients, ranks and batches each.

The round is one program. In it the step is there once for each of its shapes, as the branches of a
switch; which branch a step takes is data.

    python -m experiments.benchmarks.compilation.run --data-dir DATA    # resumable
    python -m experiments.benchmarks.compilation.report             # table and figure
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
RECORDS = "starts.jsonl"
STARTS = ("cold", "warm")
