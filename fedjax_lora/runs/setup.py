"""Set up a run: partition, ranks, method, shapes and plans, before anything is compiled."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax

from fedjax_lora import data, federated, interop, lora, methods, models
from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.target import current_target
from fedjax_lora.core.types import BatchShape
from fedjax_lora.data import Tokens
from fedjax_lora.data.batch_shapes import step_shapes
from fedjax_lora.evaluation.task_types import TASK_TYPES
from fedjax_lora.federated import ranks, transforms
from fedjax_lora.federated.attacks import Attack
from fedjax_lora.federated.clock import Clock
from fedjax_lora.federated.faults import Fault, attacks_of
from fedjax_lora.federated.planning import Federation
from fedjax_lora.federated.sampling import Sampler
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Method
from fedjax_lora.runs.choices import Choices
from fedjax_lora.runs.client_work import Fleet, make_fleet
from fedjax_lora.runs.compilation import InputSpec, RoundSpec
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.poison import TrainingData, poisoned
from fedjax_lora.runs.stopping import StoppingRule


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
    partition = data.partition(
        choices.partitioner,
        assets.task.train.labels,
        clients=fed.clients,
        seed=config.seed if fed.partition_seed is None else fed.partition_seed,
        min_examples=fed.min_examples,
        groups=assets.task.train.groups,
    )
    warm_start = _load_warm_start(config.lora.adapter, assets.model)
    lengths, shapes = _step_shapes(config, assets)
    one, inputs = _spec_maker(config, assets.model)(rank=1), _inputs(config, assets, lengths)
    fleet = make_fleet(config, choices, inputs, one, assets, shapes[-1])
    capacity = fleet and fleet.capacity(config, assets, partition, one.component_size)
    population = ranks.Population(
        fed.clients, config.seed, partition.quality, one.component_size, capacity
    )
    allocation, spec = _allocate_ranks(config, choices, assets.model, population, warm_start)
    method = choices.method(spec=spec)
    method.check(allocation.possible)
    _check_updates(config, choices, method)
    attackers = _attackers(choices, allocation, config.seed)
    privacy = _privacy(config, choices, allocation, execution, fleet)
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
        training=poisoned(
            attacks_of(choices.faults),
            attackers,
            assets.task.task,
            TrainingData(assets.train, tuple(partition.indices)),
            config.seed,
        ),
        updates=choices.updates,
        update_specs=choices.update_specs,
        server_optimizer=choices.server_optimizer,
        clock=fleet and fleet.clock(fed.cohort, method, allocation),
        privacy=privacy,
        rounds=transforms.affordable_rounds(choices.updates, privacy, fed.rounds),
        warm_start=warm_start,
        lengths=lengths,
        shapes=shapes,
    )


def _check_updates(config: RunConfig, choices: Choices, method: Method) -> None:
    """Refuse update transforms and a server optimizer that do not go with the method.

    Raises:
      InputError: they do not.
    """
    fed = config.federation
    transforms.check_transforms(choices.updates, fed.updates, method)
    options = registry.with_defaults(fed.method, methods.METHODS, "method")
    if any(x.reweighs for x in choices.updates) and options.get("weights") != "examples":
        raise InputError(
            f"Update 'geometric_median' gives clients new weights, and method {fed.method!r} does "
            "not weigh clients by them; take a method with weights='examples', or krum."
        )
    if choices.server_optimizer is not None:
        transforms.check_method_averages(method, f"Server optimizer {fed.server_optimizer!r}")


def _attackers(choices: Choices, allocation: ranks.Allocation, seed: int) -> tuple[np.ndarray, ...]:
    """Draw who commits each of the attacks among the faults, ``bool[N]``."""
    return tuple(
        fault.attackers(allocation.ranks, (seed, n))
        for n, fault in enumerate(choices.faults)
        if isinstance(fault, Attack)
    )


def default_step_shapes() -> int:
    """Sizes of a batch to compile for: few on accelerators, which take long to compile."""
    return 3 if current_target().is_cpu else 1


def _privacy(
    config: RunConfig,
    choices: Choices,
    allocation: ranks.Allocation,
    execution: federated.Execution,
    fleet: Fleet | None,
) -> Callable[[int], dict[str, float]]:
    """Return the report of the privacy spent.

    Real clients know who takes part in a round, so that sampling hides nobody.

    Raises:
      InputError: noise with cohorts that are not drawn as the report assumes, or with ranks that
        the clients' data decide.
    """
    fed = config.federation
    drawn = choices.deadline.drawn(fed.cohort, fed.clients)
    report = transforms.make_privacy_report(choices.updates, cohort=drawn, clients=fed.clients)
    if report(1) and fed.sampling != "uniform":
        raise InputError(
            f"The privacy of noise is counted for uniform sampling, and this run has "
            f"sampling={fed.sampling!r}; leave it out, or leave out the noise."
        )
    if report(1) and fleet is not None and fleet.devices.availability.min() < 1:
        raise InputError(
            "The privacy of noise is counted for cohorts drawn from all clients, and these device "
            "profiles have clients that are not always available; give profiles an availability of "
            "1, or leave out the noise."
        )
    if report(1) and allocation.schedule is not None and allocation.schedule.needs_validation:
        raise InputError(
            "Rank allocation 'loss_based' reads clients' models without noise, and ranks then tell "
            "of their data, so that noise on the updates protects nothing; take other ranks "
            "(order='random' does not score), or leave out the noise."
        )
    if execution.mode == "remote":
        return lambda rounds: {n: x for n, x in report(rounds).items() if n == "epsilon"}
    return report


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
    spec = _spec_maker(config, model)(rank=int(allocation.possible.max()))
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


def _inputs(config: RunConfig, assets: Assets, lengths: tuple[int, ...]) -> InputSpec:
    """Return how the model reads the data in training."""
    return InputSpec(
        module=assets.model.module,
        lengths=lengths,
        type=assets.task.task.type,
        dropout=config.model.dropout != 0,
        lora_dropout=config.lora.lora_dropout,
        precision=config.model.precision,
    )


def make_federation(
    config: RunConfig, assets: Assets, setup: Setup, *, least_steps: int = 0
) -> Federation:
    """Build the plans of a run's rounds.

    Args:
      config: the run.
      assets: its data and model.
      setup: what is decided before anything is compiled.
      least_steps: see `fedjax_lora.runs.compilation.programs`.
    """
    fed, local, clock = config.federation, config.local, setup.clock
    tokens = setup.training.tokens
    drawn = fed.cohort if clock is None else clock.deadline.drawn(fed.cohort, fed.clients)
    return Federation(
        members=setup.training.members,
        length=tokens.length,
        cohort=drawn,
        padded=setup.execution.padded_size(drawn),
        batch=local.batch,
        epochs=local.epochs,
        max_steps=local.max_steps,
        by_length=local.group_by_length,
        seed=config.seed,
        least_steps=least_steps,
        faults=setup.faults,
        sampler=setup.sampler,
        attacks=attacks_of(setup.faults),
        attackers=setup.attackers,
        availability=None if clock is None else clock.devices.availability,
        amount=_tokens_to_learn(assets, setup.training.tokens)
        if fed.client_weights == "tokens"
        else None,
    )


def make_round_spec(config: RunConfig, assets: Assets, setup: Setup) -> RoundSpec:
    """Collect everything that the compiled round of a run depends on.

    Args:
      config: the run.
      assets: its data and model.
      setup: what is decided before anything is compiled.
    """
    fed, local = config.federation, config.local
    return RoundSpec(
        inputs=_inputs(config, assets, setup.lengths),
        spec=setup.method.spec,
        method=fed.method,
        optimizer=local.optimizer,
        clip=local.clip,
        batch=local.batch,
        shapes=setup.shapes,
        heads=fed.heads,
        execution=setup.execution,
        prox=local.prox,
        updates=setup.update_specs,
        attacks=tuple(
            spec
            for spec, fault in zip(fed.faults, setup.faults, strict=True)
            if isinstance(fault, Attack)
        ),
        server_optimizer=fed.server_optimizer,
        measure=config.execution.measure,
    )


def _tokens_to_learn(assets: Assets, tokens: Tokens) -> np.ndarray:
    """Count the tokens that are learned from each training example, ``int32[E]``."""
    if assets.task.task.type == "language":
        return tokens.types.sum(axis=1)
    return tokens.length
