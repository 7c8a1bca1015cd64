"""Check the folders and files that a command line names, before JAX is imported."""

import json
import os
import pathlib
import re

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.hub_ids import present_id
from fedjax_lora.core.untrusted_files import check_regular_file
from fedjax_lora.runs.folder_names import ADAPTER, CONFIG, MERGED
from fedjax_lora.runs.registry_source import read_models

_ADAPTER_CONFIG = "adapter_config.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_run(folder: pathlib.Path) -> bool:
    """Return whether a folder is a run folder.

    Raises:
      InputError: no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"Folder {folder} does not exist.")
    try:
        return "federation" in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def need_run(folder: pathlib.Path) -> None:
    """Refuse a folder that is no run folder.

    Raises:
      InputError: the folder does not exist, or holds no run.
    """
    if not is_run(folder):
        raise InputError(f"{folder} holds no run: it has no {CONFIG} of one.")


def need_model(folder: pathlib.Path) -> None:
    """Refuse a folder that holds no model.

    Raises:
      InputError: no such folder; a run that is not finished; neither an adapter nor a checkpoint.
    """
    if is_run(folder):
        need_model_folder(folder)
    elif not any((folder / name).is_file() for name in (_ADAPTER_CONFIG, CONFIG)):
        raise InputError(f"{folder} holds no model: no {_ADAPTER_CONFIG} and no {CONFIG}.")


def model_folder(run: pathlib.Path) -> pathlib.Path | None:
    """Return the folder of a run's global model; None if the run is not finished."""
    folders = [run / name for name in (ADAPTER, MERGED) if (run / name).is_dir()]
    return folders[0] if folders else None


def need_model_folder(run: pathlib.Path) -> pathlib.Path:
    """Return the folder of a finished run's global model.

    Raises:
      InputError: the run is not finished.
    """
    folder = model_folder(run)
    if folder is None:
        raise InputError(f"Run {run} is not finished and has no model yet.")
    return folder


def check_base(run: pathlib.Path, name: str) -> None:
    """Refuse to download a base because a run folder, which may be anyone's, names it.

    Args:
      run: the run folder.
      name: the base in its config.

    Raises:
      InputError: the base is an id of the hub, no model known by name, and not in the hub's cache.
    """
    models = read_models()
    known = {*models, *(model["hub"] for model in models.values())}
    hub_id = present_id(name)
    is_hub_id = _HUB_ID.fullmatch(hub_id) and not os.path.isdir(os.path.expanduser(name))
    if name in known or hub_id in known or not is_hub_id:
        return
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(hub_id, CONFIG), str):
        raise InputError(
            f"The run in {run} says that its base is {name!r}, which is not on this machine; if "
            "you trust it, give it with --model."
        )


def check_input(file: pathlib.Path | None) -> None:
    """Refuse a file of texts that does not exist.

    Raises:
      InputError: no such file.
    """
    if file is not None and not file.exists():
        check_regular_file(file)


def check_output(file: pathlib.Path | None) -> None:
    """Refuse a folder where a file is to be written.

    Raises:
      InputError: it is a folder.
    """
    if file is not None and file.is_dir():
        raise InputError(f"Output {file} is a folder; give the name of a file with --out.")
