"""Check the choices of a config before JAX, data or models are loaded.

A choice is a string such as ``"tiers(ranks=[2, 8])"`` that names an entry of a registry. Names,
options and types are read from the source of the registries while their modules, which import JAX,
are not imported (see `fedjax_lora.runs.registry_source`), so a typo is answered at once. Values
that only a factory can judge (``alpha=0``) are checked when the factory is called.
"""

import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.registry_source import (
    Factories,
    read_factories,
    read_models,
    read_optimizers,
)


class Registry(NamedTuple):
    """Where the factories of one kind of choice are registered.

    Attributes:
      module: dotted name below ``fedjax_lora``.
      variable: name of the dictionary in that module.
      given: names of the arguments that a run supplies, not the user.
    """

    module: str
    variable: str
    given: tuple[str, ...] = ()


REGISTRIES: Mapping[str, Registry] = {
    "method": Registry("methods", "METHODS", ("spec",)),
    "rank allocation": Registry("federated.ranks", "ALLOCATIONS", ("population",)),
    "partition": Registry("data.partitioners", "PARTITIONERS"),
    "update": Registry("federated.transforms.registry", "TRANSFORMS"),
    "fault": Registry("federated.faults", "FAULTS"),
    "server optimizer": Registry("federated.transforms.server_optimizers", "SERVER_OPTIMIZERS"),
    "schedule": Registry("federated.optimizers", "SCHEDULES", ("rounds",)),
}


def check_choices(config: RunConfig) -> None:
    """Check that every choice of a config exists and has the options that are given.

    Raises:
      InputError: an unknown name or option, or an option of the wrong type.
    """
    check_model(config.model.model)
    _check_targets(config.lora.targets)
    check_task(config.data.task)
    for kind, spec in _choices(config):
        given = REGISTRIES[kind].given if kind in REGISTRIES else ()
        registry.check(spec, factories(kind), kind, given)


def _choices(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each choice of a config."""
    fed = config.federation
    yield "method", fed.method
    yield "rank allocation", fed.ranks
    yield "partition", fed.partition
    yield from (("update", spec) for spec in fed.updates)
    yield from (("fault", spec) for spec in fed.faults)
    yield "server optimizer", fed.server_optimizer
    yield "schedule", config.local.schedule
    yield "optimizer", config.local.optimizer


def factories(kind: str) -> Factories:
    """Return the factories of a kind by name.

    They are the registry itself if its module is imported (it may have entries added by the user)
    or needs no JAX, and otherwise functions with the same signatures, which are not to be called.
    """
    if kind == "optimizer":
        return read_optimizers()
    module, variable, _ = REGISTRIES[kind]
    if module.startswith("data."):
        importlib.import_module(f"fedjax_lora.{module}")
    loaded = sys.modules.get(f"fedjax_lora.{module}")
    if loaded is None or not hasattr(loaded, variable):
        return read_factories(module, variable)
    return getattr(loaded, variable)


def check_model(name: str) -> None:
    """Check that a model name is known, unless it can be a folder or an id of the hub.

    Raises:
      InputError: an unknown name.
    """
    if "/" in name or "\\" in name or os.path.lexists(os.path.expanduser(name)):
        return
    known = read_models()
    if name not in known:
        raise InputError(
            f"{unknown('model', name, known)} A folder or a hub id org/name works too."
        )


def _check_targets(targets: str) -> None:
    try:
        re.compile(targets)
    except re.error as error:
        raise InputError(f"Targets {targets!r} hold a bad regular expression: {error}.") from error


def check_task(spec: str) -> None:
    """Check that a task exists and has the options that are given.

    Raises:
      InputError: an unknown task or option.
    """
    from fedjax_lora.data import find_task  # imports no JAX

    find_task(spec)
