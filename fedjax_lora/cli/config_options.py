"""Read the options that decide the config which the other options override."""

import pathlib
from collections.abc import Sequence

from fedjax_lora.core.errors import InputError
from fedjax_lora.runs.config import RENAMED, RunConfig, demo, load


def base_config(args: Sequence[str]) -> RunConfig:
    """Return the config that the options on a command line override.

    It is that of the folder of ``--resume``, else the file of ``--config``, else the demo's, or
    the defaults if the command line names a task.

    Raises:
      InputError: no run in the folder, or no config in the file.
    """
    if folder := _value("--resume", args):
        if not (pathlib.Path(folder) / "config.json").is_file():
            raise InputError(f"Folder {folder} holds no run to resume: it has no config.json.")
        return load(pathlib.Path(folder) / "config.json")
    if file := _value("--config", args):
        return load(file)
    names_task = any(word.split("=")[0] == "--task" for word in args)
    return RunConfig() if names_task else demo()


def _value(option: str, args: Sequence[str]) -> str | None:
    """Return the word after an option on a command line, if the option is there."""
    for at, word in enumerate(args):
        if word == option and at + 1 < len(args):
            return args[at + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def refuse_renamed(args: Sequence[str]) -> None:
    """Refuse the options of version 0.1 that have another name now.

    Raises:
      InputError: such an option, with its present name.
    """
    options = {_option(old): _option(new) for old, new in RENAMED.items()}
    for word in args:
        option = word.partition("=")[0].replace("_", "-")
        if option in options:
            raise InputError(f"{option} is now {options[option]}.")


def _option(field: str) -> str:
    """Return the command-line option of a dotted config field."""
    return "--" + field.rpartition(".")[2].replace("_", "-")
