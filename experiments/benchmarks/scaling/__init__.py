"""How a round grows: with the clients in it, with their ranks, and with the devices.

MiniLM, AG News' texts, query and value adapted and the head trained, zero padding. One process for
each point, whose rounds are those of a run; the first one compiles, the median of the others
counts. Peak memory is that of the process, model and Python included.

* clients: 10 to 10,000 per round, all of rank 4, each with one text of 8 tokens; waves of ten
  clients.
* ranks: 100 clients with one batch of four texts of at most 16 tokens; all of rank 8, ranks 4 to 64
  with the mean 8, all of rank 64. Clients are stored and computed at the largest rank.
* devices: 32 such clients on 1, 2, 4 and 8 devices that XLA makes of the same cores. It shows that
  the program is right, not how fast devices are: what counts is the loss.

    python -m experiments.benchmarks.scaling.run --data-dir DATA    # one file a point, resumable
    python -m experiments.benchmarks.scaling.report                 # table and figure
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
RECORDS = "points.jsonl"
