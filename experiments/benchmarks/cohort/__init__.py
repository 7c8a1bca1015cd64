"""One round of a cohort: this library, a tuned PyTorch + PEFT loop, and bare matrix products.

All contenders do the same work: the same clients of ranks 4 to 64 train the same model from the
same adapter on the same examples in the same batches (AdamW, clipping, no dropout, query and value
adapted, head trained), and the zero-padded adapters are averaged. Their mean losses must be equal.

* ours: a round as ``fedjax-lora run`` executes it on this machine; ``loop`` is its slow reference
  mode, one client after another without a compiled cohort.
* PEFT: one model object for all clients with one adapter for each rank, into which a client's
  values are copied; batches padded to their own longest text; gradients only where they are needed.
* products: the matrix products of the same steps, forwards and backwards, with nothing in between
  (no normalisation, softmax, activation, adapters or optimizer): what no program on this library's
  compiler can beat without leaving products out.

Each runs in a process of its own while the others wait; they take turns, and ratios are computed
per turn. Speed counts real tokens only, no padding.

    python -m experiments.benchmarks.cohort.run --data-dir DATA    # resumable
    python -m experiments.benchmarks.cohort.profile --data-dir DATA   # shares of time
    python -m experiments.benchmarks.cohort.report                 # tables and figure
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
RECORDS = "cases.jsonl"
