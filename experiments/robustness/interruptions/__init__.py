"""Interrupted runs: real ``fedjax-lora run`` processes, stopped and damaged in many ways.

Each trial interrupts a run of a small random encoder (100 rounds, a new checkpoint as soon as the
previous one is written), resumes it, and compares the outputs with those of an uninterrupted run,
byte for byte. The compared outputs are ``metrics.jsonl`` and both files of
``adapter/``.

* 25 times ``kill -9`` at moments drawn from a seed: while it compiles, in any of its rounds, while
  it writes a checkpoint, while it writes its results; and one run killed again and again.
* SIGINT, SIGTERM, a full disk (a tmpfs that is too small), a folder that loses its write
  permission, every file of a checkpoint truncated and with one bit flipped, two runs in one folder.
* Every method killed in the middle of its rounds.
* ``predict``, ``evaluate``, ``export`` and ``compare`` killed, interrupted, and on a full disk.

    python -m experiments.robustness.interruptions.run --folder DIR    # half an hour; resumable
    python -m experiments.robustness.interruptions.cost                # cost of a checkpoint
    python -m experiments.robustness.interruptions.report              # tables
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
ROUNDS = 100
KILLS = 25
SEED = 0
