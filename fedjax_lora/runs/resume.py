"""What a run is, and whether a checkpoint is of it.

A resumed run writes what an uninterrupted one would have written, byte for byte. So nothing may
change that numbers depend on, but for these fields:

* ``execution.*``: how the run is computed. Another mode, wave or number of devices sums in another
  order: the rest of the run is then that of the first to the tolerances of float32 training.
* ``federation.rounds``, if the learning rates of the rounds done stay what they were, and not
  below the rounds done. (A last round that was evaluated out of turn stays evaluated.)
* ``data.data_dir`` and ``model.model``: where data and model are. What they hold must be the same.
"""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core import distributed
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.trees import differing_fields
from fedjax_lora.federated import optimizers
from fedjax_lora.federated.ranks import ClientScores
from fedjax_lora.runs import checkpoints
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.build import Experiment, about, prepare
from fedjax_lora.runs.checkpoints import Checkpoint, Progress
from fedjax_lora.runs.config import ExecutionConfig, RunConfig
from fedjax_lora.runs.folder import CONFIG, RunFolder
from fedjax_lora.runs.loading import load_assets

FREE = ("execution.", "federation.rounds", "data.data_dir", "model.model")

log = logging.getLogger(__name__)


def find(folder: RunFolder, wanted: RunConfig) -> list[Checkpoint]:
    """The whole checkpoints of a run that is to go on with a config, oldest first.

    Raises:
      InputError: the folder's run is another one, or finished without a checkpoint to go on from.
    """
    found = checkpoints.whole(folder.path)
    if found:
        check_config(found[-1].about["config"], wanted, found[-1].round)
        return found
    if folder.finished():
        raise InputError(f"Run {folder.path} is finished and holds no checkpoint to go on from.")
    check_config(folder.held(), wanted, 0)
    log.warning("%s holds no whole checkpoint: the run starts from round 0", folder.path)
    return []


def check_config(held: dict[str, Any], wanted: RunConfig, done: int) -> None:
    """Refuse to resume a run with another config.

    Args:
      held: config of the interrupted run, as JSON values.
      wanted: config to go on with.
      done: rounds it has done.

    Raises:
      InputError: fields differ that may not; all of them are named.
    """
    began = configs.from_dict(held)
    before, after = configs.to_dict(began), configs.to_dict(wanted)
    problems = [
        f"{name} was {_field(before, name)!r} and cannot become {_field(after, name)!r}"
        for name in differing_fields(before, after)
        if not name.startswith(FREE)
    ]
    rounds = wanted.federation.rounds
    if rounds < done:
        problems.append(f"federation.rounds is {rounds}, but {done} rounds are done")
    elif not problems and rates(began, done) != rates(wanted, done):
        problems.append(
            f"federation.rounds was {began.federation.rounds} and cannot become {rounds} with "
            f"schedule {wanted.local.schedule!r}, which would have given the rounds done other "
            "learning rates"
        )
    raise_all("This run cannot be resumed so", problems)


def rates(of: RunConfig, rounds: int) -> list[float]:
    """The learning rates of the first rounds of a run."""
    schedule = optimizers.schedule(of.local.schedule, rounds=of.federation.rounds)
    return [float(jnp.asarray(schedule(t))) for t in range(rounds)]


def continued(checkpoint: Checkpoint, experiment: Experiment, begin: Progress) -> Progress:
    """The progress that a checkpoint of this run holds.

    Args:
      checkpoint: of the run's folder.
      experiment: the run, its config checked by `check_config`.
      begin: its progress before the first round.

    Raises:
      InputError: base, data or arrays are not those of the checkpoint.
    """
    held, here = checkpoint.about, about(experiment)
    raise_all(
        "This run cannot be resumed so",
        [
            f"{what} other than when the run began (sha256 {held[name][:8]}, now {here[name][:8]})"
            for name, what in (("base", "the base model is"), ("data", "the examples are"))
            if held[name] != here[name]
        ],
    )
    if changed := differing_fields(held["environment"], here["environment"]):
        log.warning(
            "the run goes on with another %s than it began with: what follows may differ from an "
            "uninterrupted run by rounding",
            ", ".join(changed),
        )
    return checkpoints.restore(checkpoint, begin)


def on_every_process(progress: Progress) -> Progress:
    """The progress that the first process goes on with, on all of them."""
    if jax.process_count() == 1:
        return progress
    history, seconds = distributed.gather([progress.history, progress.seconds])[0]
    held = distributed.broadcast_arrays(jax.tree.map(np.asarray, checkpoints.arrays(progress)))
    return checkpoints.placed(held, progress, history, seconds)


def _field(values: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


def begin(experiment: Experiment) -> Progress:
    """What a run carries into its first round."""
    rank = experiment.rank.astype(np.int32)
    scores = ClientScores.initial(experiment.config.federation.clients)
    return Progress(experiment.state, rank, rank, scores, [])


def read_config(
    folder: pathlib.Path, *, data_dir: str | None = None, model: str | None = None
) -> RunConfig:
    """The config of a run's folder.

    Args:
      folder: the run's.
      data_dir: where its data is now, if it has moved.
      model: where its model is now, if it has moved.

    Raises:
      InputError: no config there, or one that is damaged.
    """
    config = configs.load(folder / CONFIG)
    if data_dir is not None:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, data_dir=data_dir)
        )
    if model is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, model=model))
    return config


def reopen(
    folder: pathlib.Path, config: RunConfig, *, cache_dir: str | None = None
) -> tuple[Experiment, Progress]:
    """The run in a folder and its newest checkpoint; nothing is compiled or computed.

    It is held by one device, whatever the run was spread over: that may have been a larger machine.

    Args:
      folder: the run's.
      config: from `read_config`.
      cache_dir: folder of tokens.

    Raises:
      InputError: no whole checkpoint; data or model that are not those of the run.
    """
    found = checkpoints.latest(folder)
    if found is None:
        raise InputError(f"Run {folder} holds no whole checkpoint, so its clients are not known.")
    config = dataclasses.replace(config, execution=ExecutionConfig())
    experiment = prepare(config, load_assets(config, cache_dir=cache_dir))
    return experiment, continued(found, experiment, begin(experiment))
