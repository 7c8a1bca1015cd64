"""The server's step for large models: this library, dense SVDs in NumPy and in PyTorch.

Two adapter sets, query and value of every layer: a RoBERTa-large with 100 clients of ranks 4 to 64
in equal shares, and an 8B Llama with 20 clients of rank 16. The clients' adapters are random: a
common adapter with components of falling size, and noise of half its size from each client.

All three compute HLoRA's aggregate: the best factors of rank `R` of the clients' mean product.

* ours: ``aggregate`` of the method, compiled, from the clients' adapters padded to rank `R`, as a
  round leaves them. Compilation (once per run) is reported separately.
* NumPy: for every matrix the stacks of the clients' true ranks, multiplied, and ``linalg.svd``.
* PyTorch: for every matrix a loop over the clients that adds up dense products, ``linalg.svd``.

All in float32, each library with the threads it takes by default, in a process of
its own while the others wait; the contenders take turns and the median counts. The dense ones
compute some of the layers, and their time is scaled: a loop takes the same time for each. The
error is that of a matrix's product against the same in float64, relative to its norm. The other
methods are timed for comparison.

Then one matrix with more clients, a larger rank or a larger width: HLoRA and the mean of factors
padded with zeros. Clients have a quarter, half and all of the rank in turn.

    python -m experiments.benchmarks.aggregation.run         # 10 GB of memory; resumable
    python -m experiments.benchmarks.aggregation.report      # tables and figure
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
RECORDS = "problems.jsonl"
