"""Continue an interrupted run, or open a run again.

A resumed run writes what an uninterrupted one would have written, byte for byte. So nothing may
change that numbers depend on, but for these fields:

* ``execution.*``: how the run is computed. Another mode, number of clients per step or number of
  devices sums in another order: the rest of the run is then that of the first to the tolerances of
  float32 training.
* ``federation.rounds``, if the learning rates of the rounds done stay what they were, and not
  below the rounds done. (A last round that was evaluated out of turn stays evaluated.)
* ``federation.stop``, which decides only how many rounds there are.
* ``data.data_dir`` and ``model.model``: where data and model are. Their contents must be the same.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from fedjax_lora.core import distributed
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.json_values import History, Record
from fedjax_lora.runs import checkpoints, older_versions
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.build import build
from fedjax_lora.runs.checkpoints import Checkpoint, Progress
from fedjax_lora.runs.choices import update_specs
from fedjax_lora.runs.config import ExecutionConfig, RunConfig
from fedjax_lora.runs.folder import CONFIG, RunFolder
from fedjax_lora.runs.loading import load_assets
from fedjax_lora.runs.prepared import Run

FREE = ("execution.", "federation.rounds", "federation.stop", "data.data_dir", "model.model")
"""Beginnings of the fields that may differ from those of the interrupted run."""

log = logging.getLogger(__name__)


def find_checkpoints(
    folder: RunFolder, config: RunConfig, schedule: Callable[..., optax.Schedule]
) -> list[Checkpoint]:
    """Return the complete checkpoints of the run in a folder, oldest first.

    Args:
      folder: the run folder.
      config: the config to continue with.
      schedule: ``(*, rounds) -> Schedule``, its factor on the learning rate.

    Raises:
      InputError: the run is another one, or finished without a checkpoint to continue from.
    """
    complete = checkpoints.whole(folder.path)
    if not complete and folder.finished():
        raise InputError(f"Run {folder.path} is finished and holds no checkpoint to resume from.")
    interrupted = complete[-1].about["config"] if complete else folder.read_config()
    check_config(interrupted, config, schedule, complete[-1].round if complete else 0)
    if not complete:
        log.warning("%s holds no complete checkpoint: the run starts from round 0", folder.path)
    return complete


def check_config(
    interrupted: Record,
    config: RunConfig,
    schedule: Callable[..., optax.Schedule],
    done: int,
) -> None:
    """Refuse to resume a run with another config.

    Args:
      interrupted: record of the config of the interrupted run.
      config: config to continue with.
      schedule: ``(*, rounds) -> Schedule``, its factor on the learning rate.
      done: rounds that the run has done.

    Raises:
      InputError: fields differ that may not, all of which are named; or an older version began the
        run with a rule that has changed.
    """
    previous = configs.from_record(interrupted)
    before, after = configs.to_dict(previous), configs.to_dict(config)
    problems = [
        f"{name} was {_field(before, name)!r} and cannot become {_field(after, name)!r}"
        for name in configs.differing_fields(before, after)
        if not name.startswith(FREE)
    ]
    planned, rounds = previous.federation.rounds, config.federation.rounds
    if rounds < done:
        problems.append(f"federation.rounds is {rounds}, but {done} rounds are done")
    elif not problems and _factors(schedule, planned, done) != _factors(schedule, rounds, done):
        problems.append(
            f"federation.rounds was {planned} and cannot become {rounds} with "
            f"schedule {config.local.schedule!r}, which would have given the rounds done other "
            "learning rates"
        )
    elif not problems and update_specs(previous) != update_specs(config):
        problems.append(
            f"federation.rounds was {planned} and cannot become {rounds} with an epsilon, which "
            "would have given the rounds done another noise"
        )
    raise_all("This run cannot be resumed with these options", problems)
    if done:
        older_versions.refuse_to_continue(previous, interrupted.get(configs.VERSION))


def _factors(schedule: Callable[..., optax.Schedule], rounds: int, done: int) -> list[float]:
    """Return the factors on the learning rate in the rounds done of a run of so many rounds."""
    factor = schedule(rounds=rounds)
    return [float(jnp.asarray(factor(t))) for t in range(done)]


def _field(values: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


def restore(
    complete: Sequence[Checkpoint], about: Record, initial: Progress
) -> tuple[Progress, History]:
    """Restore the newest checkpoint of a run, the same on every process.

    Args:
      complete: its checkpoints as the first process has found them; none on other processes.
      about: what the run says about itself now, see `fedjax_lora.runs.prepared.Run.about`.
      initial: the progress before the first round.

    Returns:
      Progress and history; the initial progress and an empty history without a checkpoint.

    Raises:
      InputError: base, data or arrays are not those of the checkpoint.
    """
    progress, history = initial, []
    with distributed.raise_on_all():
        if complete:
            progress = restore_checkpoint(complete[-1], about, initial)
            history = list(complete[-1].history)
    return checkpoints.share(progress, history)


def restore_checkpoint(checkpoint: Checkpoint, about: Record, initial: Progress) -> Progress:
    """Restore a checkpoint of a run.

    Args:
      checkpoint: from the run's folder, its config checked by `check_config`.
      about: what the run says about itself now, see `fedjax_lora.runs.prepared.Run.about`.
      initial: the progress before the first round.

    Raises:
      InputError: base, data or arrays are not those of the checkpoint.
    """
    saved = checkpoint.about
    problems = [
        f"{what} other than when the run began (sha256 {saved[name][:8]}, now {about[name][:8]})"
        for name, what in (("base", "the base model is"), ("data", "the examples are"))
        if saved[name] != about[name]
    ]
    if saved["data"] != about["data"]:
        partition = saved["config"]["federation"]["partition"]
        if former := older_versions.former_partition(saved["environment"], partition):
            problems.append(f"it began with {former}; finish it with that version")
    raise_all("This run cannot be resumed with these options", problems)
    if changed := configs.differing_fields(saved["environment"], about["environment"]):
        log.warning(
            "the run resumes with another %s than it began with: later rounds may differ from an "
            "uninterrupted run by rounding",
            ", ".join(changed),
        )
    return checkpoints.restore(checkpoint, initial)


def read_config(
    folder: pathlib.Path, *, data_dir: str | None = None, model: str | None = None
) -> RunConfig:
    """Read the config of a run folder.

    Args:
      folder: the run folder.
      data_dir: present folder of the data, if it has moved.
      model: present folder of the model, if it has moved.

    Raises:
      InputError: no config there, or a damaged one.
    """
    config = configs.load(folder / CONFIG)
    if data_dir is not None:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    if model is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, model=model))
    return config


class Reopened(NamedTuple):
    """A run and its newest checkpoint."""

    run: Run
    progress: Progress
    history: History


def reopen(
    folder: pathlib.Path, config: RunConfig, *, best: bool = False, cache_dir: str | None = None
) -> Reopened:
    """Open the run in a folder with its newest checkpoint; nothing is compiled or computed.

    All arrays are on one device, however many the run had.

    Args:
      folder: the run folder.
      config: from `read_config`.
      best: open the checkpoint with the best score instead.
      cache_dir: folder of cached tokens.

    Raises:
      InputError: no complete checkpoint, or none with a score; data or model that are not those of
        the run.
    """
    chosen = checkpoints.best(checkpoints.whole(folder)) if best else checkpoints.latest(folder)
    if chosen is None:
        what = "checkpoint with a score" if best else "complete checkpoint"
        raise InputError(f"Run {folder} holds no {what}, so its model then is not known.")
    config = dataclasses.replace(config, execution=ExecutionConfig())
    run = build(config, load_assets(config, cache_dir=cache_dir))
    progress = restore_checkpoint(chosen, run.about, run.begin())
    return Reopened(run, progress, chosen.history)
