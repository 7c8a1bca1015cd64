"""Trackers: the numbers of each round in TensorBoard, Weights & Biases, MLflow or trackio.

A tracker is chosen like a method, by a name with options: ``"wandb(project='clients')"``. It gets
what ``metrics.jsonl`` and ``timing.jsonl`` get, through the ``on_round`` hook of a run:

    with track(["tensorboard"], config, out="runs/a") as on_round:
        fl.run(config, out="runs/a", on_round=on_round)

A tracker that cannot start is an error before anything is loaded; one that fails later is left
behind with a warning, and the run goes on.
"""

from fedjax_lora.runs.tracking.base import IDS, Log, TrackedRun, Tracker, numbers
from fedjax_lora.runs.tracking.session import TRACKERS, check_trackers, track

__all__ = [
    "IDS",
    "TRACKERS",
    "Log",
    "TrackedRun",
    "Tracker",
    "check_trackers",
    "numbers",
    "track",
]
