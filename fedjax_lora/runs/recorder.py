"""Record the rounds of a run: its history, and the metrics and checkpoints in its folder."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from fedjax_lora.core.json_values import History, Record
from fedjax_lora.data import Task
from fedjax_lora.runs.checkpoints import Checkpoint, CheckpointManager, Progress
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.evaluations import PART
from fedjax_lora.runs.folder import TIMING, RunFolder
from fedjax_lora.runs.folder_names import METRICS


class Recorder:
    """The history of a run, in memory and, if the run has a folder, on disk.

    Attributes:
      history: one record for each round done.
    """

    def __init__(self, history: History) -> None:
        self.history = list(history)

    def record(
        self,
        record: Record,
        times: dict[str, float],
        progress: Progress,
        *,
        last: bool,
    ) -> None:
        """Add a round.

        Args:
          record: numbers of the round.
          times: seconds of the round.
          progress: the progress after it.
          last: whether the run ends or stops with it.

        Raises:
          InputError: the folder cannot be written.
        """
        self.history.append(record)


class FolderRecorder(Recorder):
    """A recorder that also writes metrics, timing and checkpoints into a run folder."""

    def __init__(
        self,
        history: History,
        folder: RunFolder,
        task: Task,
        checkpoints: CheckpointManager,
        *,
        every: int,
    ) -> None:
        """Continue the history of a folder.

        Args:
          history: one record for each round done before.
          folder: the run folder.
          task: the task, whose metric decides which checkpoint is the best.
          checkpoints: writes the checkpoints.
          every: rounds from one checkpoint to the next.
        """
        super().__init__(history)
        self._folder, self._task = folder, task
        self._checkpoints, self._every = checkpoints, every

    def record(
        self,
        record: Record,
        times: dict[str, float],
        progress: Progress,
        *,
        last: bool,
    ) -> None:
        """Add a round to the files of the folder; see `Recorder.record`."""
        super().record(record, times, progress, last=last)
        self._folder.append(METRICS, record)
        self._folder.append(TIMING, times)
        if last or progress.round % self._every == 0:
            best_score = score(record, self._task)
            self._checkpoints.save(progress, self.history, best_score, always=last)


@contextlib.contextmanager
def recording(
    folder: RunFolder | None,
    config: RunConfig,
    task: Task,
    about: Mapping[str, object],
    history: History,
    checkpoints: Sequence[Checkpoint] = (),
) -> Iterator[Recorder]:
    """Record the rounds of a run, in its folder if it has one.

    Leaving the context waits until the last checkpoint is on disk.

    Args:
      folder: claimed for the run.
      config: the run.
      task: its task.
      about: what its checkpoints say about it, see `fedjax_lora.runs.prepared.Run.about`.
      history: one record for each round done before.
      checkpoints: complete checkpoints of the run.

    Raises:
      InputError: the folder cannot be written.
    """
    if folder is None:
        yield Recorder(history)
        return
    options = config.execution
    manager = CheckpointManager(
        folder.path, about, keep=options.checkpoint_keep, checkpoints=checkpoints
    )
    recorder = FolderRecorder(history, folder, task, manager, every=options.checkpoint_every)
    folder.start(config, history)
    with manager:
        yield recorder


def score(record: Record, task: Task) -> float | None:
    """Return the score of a checkpoint: the task's metric, on validation data if there is.

    Args:
      record: record of the checkpoint's round.
      task: the task; the score is the negative of a metric that is an error.

    Returns:
      A number, higher is better; None if the round was not evaluated, or its model has diverged.
      Test examples are the same ones in all rounds, see `fedjax_lora.runs.evaluations`.
    """
    test = record.get(PART, record)
    value = record.get(f"validation_{task.metric}", test.get(task.metric))
    if value is None:
        return None
    return -value if task.lower_is_better else value
