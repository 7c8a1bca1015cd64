"""Checkpoints: the state that a run carries from round to round, saved while it goes on.

>>> import pathlib
>>> from fedjax_lora.runs import checkpoints
>>> checkpoints.latest(pathlib.Path("no-run-here")) is None
True

``restore(latest(folder), like)`` reads a run's folder; `CheckpointManager` writes one while the run
goes on.
"""

from fedjax_lora.runs.checkpoints.checkpoint import (
    FOLDER,
    Checkpoint,
    Progress,
    best,
    latest,
    restore,
    save,
    share,
    whole,
)
from fedjax_lora.runs.checkpoints.manager import CheckpointManager

__all__ = [
    "FOLDER",
    "Checkpoint",
    "CheckpointManager",
    "Progress",
    "best",
    "latest",
    "restore",
    "save",
    "share",
    "whole",
]
