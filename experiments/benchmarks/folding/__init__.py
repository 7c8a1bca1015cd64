"""What folding costs a client of Fed-PLoRA: one product per layer and round, against its steps.

A client of rank `r` adds the `R - r` modules that it does not train to its frozen kernels,
``W + a b``, once a round, in place of computing with them in every step. Timed are that sum for
all adapted kernels of an encoder of MiniLM's shape, and a local step of the same encoder (forward
and backward through the adapter), both compiled, in processor seconds.

    python -m experiments.benchmarks.folding.run     # writes results/folding.json; a minute
"""
