"""The server's step for large models: this library, dense SVDs in NumPy and in PyTorch.

Two adapter sets, query and value of every layer: a RoBERTa-large with 100 clients of ranks 4 to 64
in equal shares, and an 8B Llama with 20 clients of rank 16. The clients' adapters are random: a
common adapter with components of falling size, and noise of half its size from each client.

HLoRA's answer is wanted from all three: the best factors of rank `R` of the clients' mean product.

* ours: ``aggregate`` of the method, compiled, from the clients' adapters padded to rank `R`, as a
  round leaves them. Compilation (once a run) is given apart.
* NumPy: for every matrix the stacks of the clients' true ranks, multiplied, and ``linalg.svd``.
* PyTorch: for every matrix a loop over the clients that adds up dense products, ``linalg.svd``.

All in float32, each library with the threads it takes by default, in a process of its own that the
others wait for; the contenders take turns, and the median of the turns counts. The dense ones
compute some of the layers, and their time is multiplied: a loop takes the same time for each. The
error is that of a matrix's product against the same in float64, relative to its norm. The other
methods are timed for scale.

Then one matrix, of which clients, rank or width grow: HLoRA, and the mean of factors padded with
zeros. Clients have a quarter, half and all of the rank, in turn.

    python -m experiments.benchmarks.aggregation.run         # 10 GB; a file a problem, resumable
    python -m experiments.benchmarks.aggregation.report      # tables and figure
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
RECORDS = "problems.jsonl"
