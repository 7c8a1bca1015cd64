"""Set up a run: partition, ranks, method, shapes and plans, before anything is compiled."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax

from fedjax_lora import data, federated, interop, lora, models
from fedjax_lora.core.target import current_target
from fedjax_lora.core.types import BatchShape
from fedjax_lora.data.batch_shapes import step_shapes
from fedjax_lora.evaluation.task_types import TASK_TYPES
from fedjax_lora.federated import ranks, transforms
from fedjax_lora.federated.attacks import Attack
from fedjax_lora.federated.clock import Clock, Server
from fedjax_lora.federated.faults import Fault, attacks_of
from fedjax_lora.federated.sampling import Sampler
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Method
from fedjax_lora.runs.choices import Choices
from fedjax_lora.runs.client_work import make_fleet
from fedjax_lora.runs.compilation import training_inputs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.late_clients import check_server
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.poison import TrainingData, poisoned
from fedjax_lora.runs.stopping import StoppingRule
from fedjax_lora.runs.update_checks import check_updates, privacy_report


class Setup(NamedTuple):
    """The part of a run that is decided before anything is compiled.

    Attributes:
      execution: how a cohort is executed, and the mesh of devices.
      partition: the examples of each client.
      allocation: the rank of each client, and how ranks change.
      method: the method, on the LoRA spec of the run.
      schedule: factor on the learning rate by round.
      stop: ends the run before its last round, or never.
      sampler: who takes part in a round.
      faults: what goes wrong with drawn clients.
      attackers: who commits each of the attacks among the faults, ``bool[N]``.
      training: the training examples, with those of attackers.
      updates: transforms of the clients' updates.
      update_specs: these in text, with all their numbers.
      server_optimizer: optimizer that follows the method's change, if there is one.
      clock: the simulated clock, if clients have device profiles.
      server: goes on while clients are at work; None waits for them.
      privacy: privacy spent after a number of rounds; ``{}`` without noise.
      rounds: rounds of the run, at most those that the budget of epsilon lets happen.
      warm_start: the adapter that training begins with, unless it is a fresh one.
      lengths: lengths in tokens that batches are padded to, ascending.
      shapes: shapes that local steps are compiled for, ascending.
    """

    execution: federated.Execution
    partition: data.Partition
    allocation: ranks.Allocation
    method: Method
    schedule: optax.Schedule
    stop: StoppingRule
    sampler: Sampler
    faults: tuple[Fault, ...]
    attackers: tuple[np.ndarray, ...]
    training: TrainingData
    updates: tuple[transforms.UpdateTransform, ...]
    update_specs: tuple[str, ...]
    server_optimizer: transforms.ServerOptimizer | None
    clock: Clock | None
    server: Server | None
    privacy: Callable[[int], dict[str, float]]
    rounds: int
    warm_start: interop.LoadedAdapter | None
    lengths: tuple[int, ...]
    shapes: tuple[BatchShape, ...]


def set_up(
    config: RunConfig, choices: Choices, assets: Assets, execution: federated.Execution
) -> Setup:
    """Partition the data, allocate the ranks and build the method; nothing is compiled.

    Args:
      config: the run.
      choices: its choices, see `fedjax_lora.runs.choices.resolve`.
      assets: its data and model.
      execution: how a cohort is executed.

    Raises:
      InputError: choices that do not go with the data, the model or each other.
    """
    fed = config.federation
    partition = _partition(config, choices, assets)
    warm_start = _load_warm_start(config.lora.adapter, assets.model)
    lengths, shapes = _step_shapes(config, assets)
    one = _spec_maker(config, assets.model)(rank=1)
    inputs = training_inputs(config, assets.model.module, lengths, task_type=assets.task.task.type)
    fleet = make_fleet(config, choices, inputs, one, assets, shapes[-1])
    capacity = fleet and fleet.capacity(config, assets, partition, one.component_size)
    population = ranks.Population(
        fed.clients, config.seed, partition.quality, one.component_size, capacity
    )
    allocation, spec = _allocate_ranks(config, choices, assets.model, population, warm_start)
    method = choices.method(spec=spec)
    method.check(allocation.possible)
    check_updates(config, choices, method)
    check_server(config, choices, method, allocation, execution, fleet)
    attackers = _attackers(choices, allocation, config.seed)
    privacy = privacy_report(config, choices, allocation, execution, fleet)
    return Setup(
        execution=execution,
        partition=partition,
        allocation=allocation,
        method=method,
        schedule=choices.schedule(rounds=fed.rounds),
        stop=choices.stop(lower_is_better=assets.task.task.lower_is_better),
        sampler=choices.sampler,
        faults=choices.faults,
        attackers=attackers,
        training=_training(choices, attackers, assets, partition, config.seed),
        updates=choices.updates,
        update_specs=choices.update_specs,
        server_optimizer=choices.server_optimizer,
        clock=fleet and fleet.clock(fed.cohort, method, allocation),
        server=choices.server,
        privacy=privacy,
        rounds=transforms.affordable_rounds(choices.updates, privacy, fed.rounds),
        warm_start=warm_start,
        lengths=lengths,
        shapes=shapes,
    )


def _partition(config: RunConfig, choices: Choices, assets: Assets) -> data.Partition:
    """Divide the training examples among the clients."""
    fed = config.federation
    return data.partition(
        choices.partitioner,
        assets.task.train.labels,
        clients=fed.clients,
        seed=config.seed if fed.partition_seed is None else fed.partition_seed,
        min_examples=fed.min_examples,
        groups=assets.task.train.groups,
    )


def _attackers(choices: Choices, allocation: ranks.Allocation, seed: int) -> tuple[np.ndarray, ...]:
    """Draw who commits each of the attacks among the faults, ``bool[N]``."""
    return tuple(
        fault.attackers(allocation.ranks, (seed, n))
        for n, fault in enumerate(choices.faults)
        if isinstance(fault, Attack)
    )


def _training(
    choices: Choices,
    attackers: tuple[np.ndarray, ...],
    assets: Assets,
    partition: data.Partition,
    seed: int,
) -> TrainingData:
    """Return the training examples, with those that attackers make."""
    given = TrainingData(assets.train, tuple(partition.indices))
    return poisoned(attacks_of(choices.faults), attackers, assets.task.task, given, seed)


def default_step_shapes() -> int:
    """Sizes of a batch to compile for: few on accelerators, which take long to compile."""
    return 3 if current_target().is_cpu else 1


def _load_warm_start(folder: str | None, model: models.Pretrained) -> interop.LoadedAdapter | None:
    """Load the adapter that training begins with, if there is one."""
    return None if folder is None else interop.load_adapter(folder, model)


def _allocate_ranks(
    config: RunConfig,
    choices: Choices,
    model: models.Pretrained,
    population: ranks.Population,
    warm_start: interop.LoadedAdapter | None,
) -> tuple[ranks.Allocation, LoraSpec]:
    """Allocate the clients' ranks, and build the LoRA spec with the largest of them."""
    allocation = ranks.checked(choices.ranks(population=population), config.federation.ranks)
    spec = _spec_maker(config, model)(rank=allocation.stored)
    if warm_start is not None:
        spec = interop.warm_start_spec(spec, warm_start, keep_scale=config.lora.alpha is None)
    return allocation, spec


def _spec_maker(config: RunConfig, model: models.Pretrained) -> Callable[..., LoraSpec]:
    """Return the function ``(*, rank) -> LoraSpec`` of a run."""
    options = config.lora
    return functools.partial(
        lora.make_spec,
        {name: part for name, part in model.params.items() if name != "head"},
        targets=options.targets,
        alpha=options.alpha,
        scale=options.scale,
        layers=options.lora_layers,
    )


def _step_shapes(
    config: RunConfig, assets: Assets
) -> tuple[tuple[int, ...], tuple[BatchShape, ...]]:
    """Return the lengths that batches are padded to, and the shapes of local steps."""
    return step_shapes(
        assets.train.length,
        longest=assets.longest,
        buckets=TASK_TYPES[assets.task.task.type].num_buckets,
        batch=config.local.batch,
        by_length=config.local.group_by_length,
        unpadded=models.supports_unpadding(assets.model.module),
        most=config.execution.step_shapes or default_step_shapes(),
    )
