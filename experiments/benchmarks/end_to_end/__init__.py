"""Whole experiments as processes: this library, a PyTorch + PEFT loop, Flower's simulation.

AG News, 100 clients of ranks 4, 8, 16 and 32, cohorts of 10, 20 rounds, zero padding, AdamW with a
decaying learning rate, MiniLM's query and value adapted and the head trained; 500 test examples
after rounds 10 and 20. All programs train the same clients on the same batches from the same
initial adapter without dropout, so the losses must be equal up to rounding.

* ours: ``fedjax-lora run``, with an empty cache of programs and tokens (cold), then again (warm).
* PEFT: one process, one client after another; one model object, one adapter for each rank, batches
  padded to their own longest text, the test examples sorted by length.
* Flower: `flwr.simulation` with the same client in its workers and the same server, once with one
  worker that has both cores and once with two of one core each. A worker keeps its model from
  client to client.

Times are of a whole process: imports, tokenising, compiling, training,
evaluation; ours also writes checkpoints, figures and the adapter. Memory is the largest sum over
the process and its children, of what each has alone and its part of what they share (PSS).

    python -m experiments.benchmarks.end_to_end.run --data-dir DATA  # resumable
    python -m experiments.benchmarks.end_to_end.report                 # table and figure

Flower is not installed with this project. For it: an environment with ``flwr[simulation]``,
``torch``, ``peft`` and ``transformers``, and ``--flower PYTHON`` with its interpreter.
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
RECORDS = "processes.jsonl"
CONTENDERS = ("ours", "peft", "flower-1", "flower-2")
