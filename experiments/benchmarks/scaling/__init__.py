"""Time and memory of a round by number of clients, by ranks and by devices.

MiniLM, AG News' texts, query and value adapted and the head trained, zero padding. One process per
point executes the rounds of a run; the first one compiles, the median of the others is reported.
Peak memory is that of the process, model and Python included.

* clients: 10 to 10,000 per round, all of rank 4, each with one text of 8 tokens; ten clients
  per step.
* ranks: 100 clients with one batch of four texts of at most 16 tokens; all of rank 8, ranks 4 to 64
  with the mean 8, all of rank 64. Clients are stored and computed at the largest rank.
* devices: 32 such clients on 1, 2, 4 and 8 devices that XLA emulates on the same cores. It shows
  that the program is right, not how fast devices are: the losses are compared.

    python -m experiments.benchmarks.scaling.run --data-dir DATA    # resumable
    python -m experiments.benchmarks.scaling.report                 # table and figure
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
RECORDS = "points.jsonl"
