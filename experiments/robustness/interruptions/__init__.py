"""What a run survives: real ``fedjax-lora run`` processes, stopped and damaged in every way.

Each trial interferes with a run of a small random encoder (100 rounds, a checkpoint whenever the
one before is written), resumes it, and compares what is left with an uninterrupted run, byte for
byte. "The same" means ``metrics.jsonl`` and both files of ``adapter/``.

* 25 times ``kill -9`` at moments drawn from a seed: while it compiles, in any of its rounds, while
  it writes a checkpoint, while it writes its results; and one run killed again and again.
* SIGINT, SIGTERM, a full disk (a tmpfs that is too small), a folder that loses its write
  permission, every file of a checkpoint truncated and with one bit flipped, two runs in one folder.
* Every method killed in the middle of its rounds.

    # about half an hour on two cores; resumable
    python -m experiments.robustness.interruptions.run --folder DIR
    python -m experiments.robustness.interruptions.cost                # what a checkpoint costs
    # the README's tables from the result files
    python -m experiments.robustness.interruptions.report
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
ROUNDS = 100
KILLS = 25
SEED = 0
