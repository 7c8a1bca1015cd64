"""A run's folder, opened again: what it was built from and what it has led to."""

import dataclasses
import pathlib

from fedjax_lora.runs import checkpoints, resume, run
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.loading import load_assets
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.config import ExecutionConfig, RunConfig
from fedjax_lora.core.errors import InputError
from fedjax_lora.runs.build import Experiment, prepare
from fedjax_lora.runs.folder import CONFIG


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
    return experiment, resume.continued(found, experiment, run.begin(experiment))
