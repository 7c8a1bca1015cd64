"""The output folder of a run, and its history in memory."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

import jax

from fedjax_lora import config as configs
from fedjax_lora.config import RunConfig
from fedjax_lora.errors import InputError
from fedjax_lora.files import brief

PACKAGES = ("fedjax-lora", "jax", "jaxlib", "flax", "optax", "transformers", "datasets", "numpy")


def environment() -> dict[str, Any]:
    """Versions and devices: what a number depends on besides the config."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "packages": versions,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Config, metrics, timing, summary, figures and adapter of one run.

    A round's numbers and its times are in two files, so that ``metrics.jsonl`` is the same, byte
    for byte, whenever the same config runs on the same kind of machine.
    """

    path: pathlib.Path

    @classmethod
    def claim(cls, path: str | pathlib.Path, config: RunConfig, *, overwrite: bool) -> "RunFolder":
        """A folder this run may write to; nothing is written yet.

        Raises:
          InputError: the folder holds another run, or this one and ``overwrite`` is not set, or
            something that is no run at all.
        """
        folder = cls(pathlib.Path(path))
        if os.path.lexists(path) and not os.path.isdir(path):
            raise InputError(f"Output {path} is a file; choose a folder with --out.")
        folder._check_contents(config, overwrite)
        return folder

    def start(self, config: RunConfig) -> None:
        """Make the folder, empty of an earlier run's numbers, and write the config.

        Raises:
          InputError: the folder cannot be written.
        """
        try:
            (self.path / "figures").mkdir(parents=True, exist_ok=True)
            for name in ("metrics.jsonl", "timing.jsonl", "summary.json"):
                (self.path / name).unlink(missing_ok=True)
            self.write("config.json", configs.to_dict(config))
        except (OSError, ValueError) as error:
            raise InputError(
                f"Output folder {self.path} cannot be written ({brief(error)})."
            ) from error

    def _check_contents(self, config: RunConfig, overwrite: bool) -> None:
        present = sorted(os.listdir(self.path)) if os.path.isdir(self.path) else []
        if not present or (overwrite and "config.json" in present):
            return
        if "config.json" not in present:
            raise InputError(
                f"Output folder {self.path} holds other files ({', '.join(present[:3])}) and no "
                "run; choose a new or empty folder with --out."
            )
        try:
            held = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            held = {}
        different = differences(held, configs.to_dict(config))
        what = f"a different run ({', '.join(different[:5])})" if different else "this run already"
        raise InputError(
            f"Output folder {self.path} holds {what}; choose another with --out, or replace it "
            "with --overwrite."
        )

    def write(self, name: str, values: Any) -> None:
        """Write one JSON file."""
        text = json.dumps(values, indent=2) + "\n"
        (self.path / name).write_text(text, encoding="utf-8")

    def append(self, name: str, values: Any) -> None:
        """Append one line to a JSON-lines file."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def differences(one: Any, other: Any, prefix: str = "") -> list[str]:
    """The dotted names of the fields in which two nested dictionaries differ.

    >>> differences({"seed": 0, "data": {"task": "a"}}, {"seed": 0, "data": {"task": "b"}})
    ['data.task']
    """
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [prefix]
    names = sorted(set(one) | set(other))
    return [
        found
        for name in names
        for found in differences(
            one.get(name), other.get(name), f"{prefix}.{name}" if prefix else name
        )
    ]
