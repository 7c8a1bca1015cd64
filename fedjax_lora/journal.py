"""What a run writes down while it goes on: a line for each round, and checkpoints."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fedjax_lora.runs.checkpoints import Checkpoint, Keeper, Progress
from fedjax_lora.data import Task
from fedjax_lora.runs.build import Experiment
from fedjax_lora.runs.folder import METRICS, TIMING, RunFolder
from fedjax_lora.runs.build import about

Write = Callable[[Progress, dict[str, float], bool], None]
"""Takes what a run has led to so far, the times of the last round and whether it stops there."""


@contextlib.contextmanager
def journal(
    folder: RunFolder | None,
    experiment: Experiment,
    progress: Progress,
    found: Sequence[Checkpoint] = (),
) -> Iterator[Write]:
    """Keep the journal of a run in its folder, if it has one, from a progress on.

    Leaving the context waits until the last checkpoint is on disk.

    Args:
      folder: claimed for the run.
      experiment: the run.
      progress: what it begins or goes on with.
      found: its checkpoints so far.

    Raises:
      InputError: the folder cannot be written.
    """
    if folder is None:
        yield lambda progress, times, stopping: None
        return
    how, rounds = experiment.config.execution, experiment.config.federation.rounds
    task = experiment.assets.task.task
    folder.start(experiment.config, progress.history)

    def write(progress: Progress, times: dict[str, float], stopping: bool) -> None:
        record = progress.history[-1]
        folder.append(METRICS, record)
        folder.append(TIMING, times)
        last = stopping or progress.round == rounds
        if last or progress.round % how.checkpoint_every == 0:
            keeper.save(progress, score(record, task), always=last)

    keeper = Keeper(folder.path, about(experiment), keep=how.checkpoint_keep, found=found)
    with keeper:
        yield write


def score(record: dict[str, Any], task: Task) -> float | None:
    """What makes one checkpoint better than another: the metric, on validation data if there is.

    Args:
      record: of the round.
      task: the run's; of a metric that is an error, the score is its negative.

    Returns:
      The higher, the better; None where the round was not evaluated, or its model has diverged.
    """
    found = record.get(f"validation_{task.metric}", record.get(task.metric))
    if found is None:
        return None
    return -found if task.lower_is_better else found
