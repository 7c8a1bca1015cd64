"""The choices of a config: checked before JAX is loaded, and resolved once for a run.

A choice is a string such as ``"tiers(ranks=[2, 8])"`` that names an entry of a registry.
`check_choices` reads names, options and types from the source of the registries while their
modules, which import JAX, are not imported (see `fedjax_lora.runs.registry_source`), so a typo is
answered at once. `resolve` calls the factories; values that only they can judge (``alpha=0``) are
checked then, before data and model are loaded.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError, unknown
from fedjax_lora.core.hub_ids import present_id
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.registry_source import (
    Factories,
    read_factories,
    read_models,
    read_optimizers,
)

if TYPE_CHECKING:
    import optax

    from fedjax_lora.data.partitioners import Partitioner
    from fedjax_lora.federated.clock import Deadline, DeviceMix, Server
    from fedjax_lora.federated.faults import Fault
    from fedjax_lora.federated.ranks import Allocation
    from fedjax_lora.federated.sampling import Sampler
    from fedjax_lora.federated.transforms import ServerOptimizer, UpdateTransform
    from fedjax_lora.methods import Method
    from fedjax_lora.runs.stopping import StoppingRule


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
    "sampling": Registry("federated.sampling", "SAMPLERS"),
    "update": Registry("federated.transforms.registry", "TRANSFORMS"),
    "fault": Registry("federated.faults", "FAULTS"),
    "device profiles": Registry("federated.clock.devices", "DEVICE_PROFILES"),
    "deadline": Registry("federated.clock.deadlines", "DEADLINES"),
    "server": Registry("federated.clock.servers", "SERVERS"),
    "server optimizer": Registry("federated.transforms.server_optimizers", "SERVER_OPTIMIZERS"),
    "schedule": Registry("federated.optimizers", "SCHEDULES", ("rounds",)),
    "stopping rule": Registry("runs.stopping", "STOPPING_RULES", ("lower_is_better",)),
}


class Choices(NamedTuple):
    """The choices of a config as functions and values, with their options.

    Attributes:
      method: ``(spec) -> Method``, given the LoRA spec of the run.
      ranks: ``(*, population) -> Allocation``.
      partitioner: assigns the training examples to clients.
      sampler: who takes part in a round.
      updates: transforms of the clients' updates, in their order.
      update_specs: these in text, with the noise multiplier that an epsilon needs.
      faults: what goes wrong with drawn clients, in its order.
      device_profiles: ``(clients, seed) -> Devices``, if clients have any.
      deadline: when the server closes a round.
      server: how the server goes on while clients are at work; None waits for a round.
      server_optimizer: optimizer that follows the method's change, if there is one.
      schedule: ``(*, rounds) -> Schedule``, the factor on the learning rate by round.
      stop: ``(*, lower_is_better) -> StoppingRule``, which may end the run early.
    """

    method: "Callable[..., Method]"
    ranks: "Callable[..., Allocation]"
    partitioner: "Partitioner"
    sampler: "Sampler"
    updates: "tuple[UpdateTransform, ...]"
    update_specs: tuple[str, ...]
    faults: "tuple[Fault, ...]"
    device_profiles: "DeviceMix | None"
    deadline: "Deadline"
    server: "Server | None"
    server_optimizer: "ServerOptimizer | None"
    schedule: "Callable[..., optax.Schedule]"
    stop: "Callable[..., StoppingRule]"


def resolve(config: RunConfig) -> Choices:
    """Resolve the choices of a config; imports the modules of their registries.

    Raises:
      InputError: an unknown name or option, or a value that is out of range.
    """
    fed = config.federation
    registry.bind(config.local.optimizer, factories("optimizer"), "optimizer")
    updates = update_specs(config)
    return Choices(
        method=registry.bind(fed.method, *_registered("method")),
        ranks=registry.bind(fed.ranks, *_registered("rank allocation")),
        partitioner=registry.bind(fed.partition, *_registered("partition"))(),
        sampler=registry.bind(fed.sampling, *_registered("sampling"))(),
        updates=tuple(registry.bind(spec, *_registered("update"))() for spec in updates),
        update_specs=updates,
        faults=tuple(registry.bind(spec, *_registered("fault"))() for spec in fed.faults),
        device_profiles=registry.bind(fed.device_profiles, *_registered("device profiles"))(),
        deadline=registry.bind(fed.deadline, *_registered("deadline"))(),
        server=registry.bind(fed.server_mode, *_registered("server"))(),
        server_optimizer=registry.bind(fed.server_optimizer, *_registered("server optimizer"))(),
        schedule=registry.bind(config.local.schedule, *_registered("schedule")),
        stop=registry.bind(fed.stop, *_registered("stopping rule")),
    )


def update_specs(config: RunConfig) -> tuple[str, ...]:
    """Return the updates of a config, an epsilon replaced by the noise that it needs.

    Raises:
      InputError: an unknown update or option, or an epsilon that no noise has.
    """
    from fedjax_lora.federated import transforms  # imports JAX, as the registries

    fed = config.federation
    for spec in fed.updates:
        registry.bind(spec, *_registered("update"))
    return transforms.with_multipliers(fed.updates, rounds=fed.rounds, clients=fed.clients)


def _registered(kind: str) -> tuple[Factories, str, tuple[str, ...]]:
    """Return the factories of a kind, the kind, and the arguments that a run supplies."""
    module, variable, given = REGISTRIES[kind]
    loaded = importlib.import_module(f"fedjax_lora.{module}")
    return getattr(loaded, variable), kind, given


def check_choices(config: RunConfig) -> None:
    """Check that every choice of a config exists and has the options that are given.

    Raises:
      InputError: an unknown name or option, or an option of the wrong type.
    """
    check_names(config)
    for kind, spec in _choices(config):
        given = REGISTRIES[kind].given if kind in REGISTRIES else ()
        registry.bind(spec, factories(kind), kind, given)


def check_names(config: RunConfig) -> None:
    """Check the names of what is loaded: the model, its layers, and the task.

    Raises:
      InputError: an unknown name, or layers that are no regular expression.
    """
    check_model(config.model.model)
    _check_targets(config.lora.targets)
    check_task(config.data.task)


def _choices(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each choice of a config."""
    fed = config.federation
    yield "method", fed.method
    yield "rank allocation", fed.ranks
    yield "partition", fed.partition
    yield "sampling", fed.sampling
    yield from (("update", spec) for spec in fed.updates)
    yield from (("fault", spec) for spec in fed.faults)
    yield "device profiles", fed.device_profiles
    yield "deadline", fed.deadline
    yield "server", fed.server_mode
    yield "server optimizer", fed.server_optimizer
    yield "schedule", config.local.schedule
    yield "stopping rule", fed.stop
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
    if "/" in present_id(name) or "\\" in name or os.path.lexists(os.path.expanduser(name)):
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
        raise InputError(
            f"Targets {targets!r} hold an invalid regular expression: {error}."
        ) from error


def check_task(spec: str) -> None:
    """Check that a task exists and has the options that are given.

    Raises:
      InputError: an unknown task or option.
    """
    from fedjax_lora.data import find_task  # imports no JAX

    find_task(spec)
