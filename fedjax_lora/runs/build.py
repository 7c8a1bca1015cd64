"""Build a run from its config: partition, ranks, method, compiled functions and initial state."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lora import data, federated, interop, lora, methods, models
from fedjax_lora.core import trees
from fedjax_lora.core.types import Adapter, BatchShape, Key, Params
from fedjax_lora.data.batch_shapes import padded_shapes, row_buckets, unpadded_shapes
from fedjax_lora.data.batching import length_buckets
from fedjax_lora.evaluation.evaluator import LabelledSplit, make_evaluate
from fedjax_lora.evaluation.task_types import TASK_TYPES, Scores
from fedjax_lora.federated import FederatedState, Plan, RoundMetrics, optimizers, ranks, transforms
from fedjax_lora.federated.faults import make_faults
from fedjax_lora.federated.planning import Federation
from fedjax_lora.federated.ranks import ClientScores
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Method
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.choices import check_choices
from fedjax_lora.runs.compilation import CompiledFunctions, InputSpec, RoundSpec, programs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.environment import environment
from fedjax_lora.runs.loading import Assets, execution_of, load_assets
from fedjax_lora.runs.rank_updates import RankUpdates, make_rank_updates


class Setup(NamedTuple):
    """The part of a run that is decided before anything is compiled.

    Attributes:
      execution: how a cohort is executed, and the mesh of devices.
      partition: the examples of each client.
      allocation: the rank of each client, and how ranks change.
      method: the method, on the LoRA spec of the run.
      schedule: factor on the learning rate by round.
      updates: transforms of the clients' updates.
      server_optimizer: optimizer that follows the method's change, if there is one.
      privacy: privacy spent after a number of rounds; ``{}`` without noise.
      warm_start: the adapter that training begins with, unless it is a fresh one.
    """

    execution: federated.Execution
    partition: data.Partition
    allocation: ranks.Allocation
    method: Method
    schedule: optax.Schedule
    updates: tuple[transforms.UpdateTransform, ...]
    server_optimizer: transforms.ServerOptimizer | None
    privacy: Callable[[int], dict[str, float]]
    warm_start: interop.LoadedAdapter | None


class Inputs(NamedTuple):
    """What a run reads.

    Attributes:
      assets: data and model as they were loaded.
      base: parameters of the frozen base, on the device(s).
      train: training tokens, on the device(s).
    """

    assets: Assets
    base: Params
    train: data.Tokens


class Run(NamedTuple):
    """Everything that a run needs before its first round.

    Attributes:
      config: the run's config.
      inputs: data and model.
      federation: plans the rounds.
      setup: method, transforms of updates, and what else is decided before compiling.
      step: the compiled round.
      evaluate: scores of the global model of a state.
      ranks: the clients' initial ranks, and how ranks change between rounds.
    """

    config: RunConfig
    inputs: Inputs
    federation: Federation
    setup: Setup
    step: federated.CompiledRound
    evaluate: Callable[[FederatedState], Scores]
    ranks: RankUpdates

    @property
    def rounds(self) -> int:
        """Rounds of the run."""
        return self.config.federation.rounds

    @property
    def task(self) -> data.Task:
        """The task of the run."""
        return self.inputs.assets.task.task

    @property
    def key(self) -> Key:
        """The root key of the run."""
        return jax.random.key(self.config.seed)

    @property
    def method(self) -> Method:
        """The method, on the LoRA spec of the run."""
        return self.setup.method

    @property
    def round_spec(self) -> RoundSpec:
        """Everything that the compiled round depends on."""
        return make_round_spec(self.config, self.inputs.assets, self.setup)

    def learning_rate(self, round: int) -> float:
        """Return the learning rate of a round, counted from 0."""
        factor = float(jnp.asarray(self.setup.schedule(round)))
        return self.config.local.learning_rate * factor

    def begin(self) -> Progress:
        """Build the progress before the first round.

        Raises:
          InputError: the method does not go with the shapes of the run.
        """
        fed = self.config.federation
        rank = self.ranks.initial.astype(np.int32)
        return Progress(_initial_state(self), rank, rank, ClientScores.initial(fed.clients))

    def train(self, state: FederatedState, plan: Plan) -> tuple[FederatedState, RoundMetrics]:
        """Train and aggregate a round; the memory of ``state`` is given to the result."""
        return self.step(self.inputs.base, self.inputs.train, state, plan, self.key)

    def reference(self, state: FederatedState) -> Scores:
        """Return the scores that those of the run are compared with.

        Args:
          state: the state before the first round.
        """
        reference_scores = TASK_TYPES[self.task.type].reference_scores
        return reference_scores(self.inputs.assets.test.label, lambda: self.evaluate(state))

    def identity(self) -> dict[str, Any]:
        """Return all fields of the config by dotted name, and digests of base and data."""
        return trees.flat(configs.to_dict(self.config)) | self.digests()

    def digests(self) -> dict[str, str]:
        """Return hex sha256 digests of base and data, by what is in a checkpoint."""
        return {"base": self.inputs.assets.model.fingerprint, "data": _data_digest(self)}

    def about(self) -> dict[str, Any]:
        """Return what the checkpoints of the run say about it, as JSON values."""
        config = configs.to_record(self.config)
        return {"config": config, "environment": environment()} | self.digests()


def build(
    config: RunConfig, assets: Assets | None = None, shared: CompiledFunctions | None = None
) -> Run:
    """Build a run: load and partition the data, allocate ranks, compile functions.

    Args:
      config: the run.
      assets: data and model loaded before, to share between runs.
      shared: compiled functions of other runs, used where they fit; see
        `fedjax_lora.runs.compilation`.

    Raises:
      InputError: choices that are unknown, or do not go with the data, the model or each other.
    """
    if assets is None:
        check_choices(config)
        assets = load_assets(config)
    execution, shared = execution_of(config), shared or programs()
    setup = set_up(config, assets, execution)
    round_spec = make_round_spec(config, assets, setup)
    federation = make_federation(config, assets, setup, least_steps=shared.least_steps)
    inputs = _place_inputs(assets, setup.execution)
    return Run(
        config=config,
        inputs=inputs,
        federation=federation,
        setup=setup,
        step=shared.round(round_spec),
        evaluate=_make_evaluate(config, inputs, setup, round_spec, shared),
        ranks=_make_rank_updates(config, inputs, setup, round_spec, federation, shared),
    )


def set_up(config: RunConfig, assets: Assets, execution: federated.Execution) -> Setup:
    """Partition the data, allocate the ranks and build the method; nothing is compiled.

    Args:
      config: the run.
      assets: its data and model.
      execution: how a cohort is executed.

    Raises:
      InputError: choices that are unknown, or do not go with the data, the model or each other.
    """
    fed = config.federation
    partition = data.partition(
        fed.partition,
        assets.task.train.labels,
        clients=fed.clients,
        seed=config.seed,
        min_examples=fed.min_examples,
        groups=assets.task.train.groups,
    )
    warm_start = _load_warm_start(config, assets)
    allocation, spec = _allocate_ranks(config, assets, partition, warm_start)
    method = methods.make(fed.method, spec)
    method.check(allocation.possible)
    updates = transforms.make_transforms(fed.updates, method)
    return Setup(
        execution=execution,
        partition=partition,
        allocation=allocation,
        method=method,
        schedule=optimizers.schedule(config.local.schedule, rounds=fed.rounds),
        updates=updates,
        server_optimizer=transforms.make_server_optimizer(fed.server_optimizer, method),
        privacy=transforms.make_privacy_report(updates, cohort=fed.cohort, clients=fed.clients),
        warm_start=warm_start,
    )


def _load_warm_start(config: RunConfig, assets: Assets) -> interop.LoadedAdapter | None:
    """Load the adapter that training begins with, if the config names one."""
    folder = config.lora.adapter
    return None if folder is None else interop.load_adapter(folder, assets.model)


def _allocate_ranks(
    config: RunConfig,
    assets: Assets,
    partition: data.Partition,
    warm_start: interop.LoadedAdapter | None,
) -> tuple[ranks.Allocation, LoraSpec]:
    """Allocate the clients' ranks, and build the LoRA spec with the largest of them."""
    options = config.lora
    make_spec = functools.partial(
        lora.make_spec,
        {name: part for name, part in assets.model.params.items() if name != "head"},
        targets=options.targets,
        alpha=options.alpha,
        scale=options.scale,
        layers=options.lora_layers,
    )
    allocation = ranks.allocate(
        config.federation.ranks,
        clients=config.federation.clients,
        seed=config.seed,
        quality=partition.quality,
        component_size=make_spec(rank=1).component_size,
    )
    spec = make_spec(rank=int(allocation.possible.max()))
    if warm_start is not None:
        spec = interop.warm_start_spec(spec, warm_start, keep_scale=options.alpha is None)
    return allocation, spec


def make_federation(
    config: RunConfig, assets: Assets, setup: Setup, *, least_steps: int = 0
) -> Federation:
    """Build the plans of a run's rounds.

    Args:
      config: the run.
      assets: its data and model.
      setup: from `set_up`.
      least_steps: see `fedjax_lora.runs.compilation.programs`.
    """
    fed, local = config.federation, config.local
    return Federation(
        members=setup.partition.indices,
        length=assets.train.length,
        cohort=fed.cohort,
        padded=setup.execution.padded_size(fed.cohort),
        batch=local.batch,
        epochs=local.epochs,
        max_steps=local.max_steps,
        by_length=local.group_by_length,
        seed=config.seed,
        least_steps=least_steps,
        faults=make_faults(fed.faults),
        amount=_tokens_to_learn(assets) if fed.client_weights == "tokens" else None,
    )


def make_round_spec(config: RunConfig, assets: Assets, setup: Setup) -> RoundSpec:
    """Collect everything that the compiled round of a run depends on.

    Args:
      config: the run.
      assets: its data and model.
      setup: from `set_up`.
    """
    fed, local = config.federation, config.local
    task_type = assets.task.task.type
    splits = (assets.train, assets.validation, assets.test)
    longest = max(tokens.ids.shape[1] for tokens in splits if tokens is not None)
    inputs = InputSpec(
        module=assets.model.module,
        lengths=length_buckets(
            assets.train.length, longest=longest, most=TASK_TYPES[task_type].num_buckets
        ),
        type=task_type,
        dropout=config.model.dropout != 0,
        lora_dropout=config.lora.lora_dropout,
    )
    return RoundSpec(
        inputs=inputs,
        spec=setup.method.spec,
        method=fed.method,
        optimizer=local.optimizer,
        clip=local.clip,
        batch=local.batch,
        shapes=_step_shapes(inputs, assets, local.batch, by_length=local.group_by_length),
        heads=fed.heads,
        execution=setup.execution,
        prox=local.prox,
        updates=fed.updates,
        server_optimizer=fed.server_optimizer,
        measure=config.execution.measure,
    )


def _step_shapes(
    inputs: InputSpec, assets: Assets, batch: int, *, by_length: bool
) -> tuple[BatchShape, ...]:
    """Return the shapes that local steps are compiled for."""
    if inputs.objective().unpad is None:
        return padded_shapes(row_buckets(batch), inputs.lengths)
    return unpadded_shapes(assets.train.length, inputs.lengths, batch=batch, by_length=by_length)


def _tokens_to_learn(assets: Assets) -> np.ndarray:
    """Count the tokens that are learned from each training example, ``int32[E]``."""
    tokens = assets.train
    if assets.task.task.type == "language":
        return tokens.types.sum(axis=1)
    return tokens.length


def _place_inputs(assets: Assets, execution: federated.Execution) -> Inputs:
    """Put the base and the training tokens on the device(s)."""
    mesh, base = execution.mesh, models.frozen_base(assets.model)
    base = federated.place(base, federated.base_sharding(base, mesh))
    return Inputs(assets, base, federated.place(assets.train, federated.everywhere(mesh)))


def _make_evaluate(
    config: RunConfig,
    inputs: Inputs,
    setup: Setup,
    round_spec: RoundSpec,
    shared: CompiledFunctions,
) -> Callable[[FederatedState], Scores]:
    """Build the evaluation on the test split and, if there is one, the validation split."""
    assets, batch = inputs.assets, config.execution.eval_batch
    mesh = setup.execution.mesh
    splits = [LabelledSplit("", assets.task.test, assets.test)]
    if assets.task.validation is not None and assets.validation is not None:
        splits.append(LabelledSplit("validation_", assets.task.validation, assets.validation))
    return make_evaluate(
        assets.task,
        assets.model,
        setup.method.spec,
        splits,
        predict=shared.predict(round_spec.inputs, batch, mesh),
        base=inputs.base,
        place=lambda tree: federated.place(tree, federated.everywhere(mesh)),
        max_length=config.data.max_length,
        batch=batch,
    )


def _make_rank_updates(
    config: RunConfig,
    inputs: Inputs,
    setup: Setup,
    round_spec: RoundSpec,
    federation: Federation,
    shared: CompiledFunctions,
) -> RankUpdates:
    """Build the reallocation of ranks, if the config asks for it."""
    validation, mesh = inputs.assets.validation, setup.execution.mesh
    if setup.allocation.schedule is None:
        return RankUpdates(setup.allocation.ranks)
    if validation is not None:
        validation = federated.place(validation, federated.everywhere(mesh))
    return make_rank_updates(
        setup.allocation,
        round_spec,
        federation,
        shared.client_update(round_spec),
        base=inputs.base,
        train=inputs.train,
        validation=validation,
        batch=config.execution.eval_batch,
        init=config.lora.lora_init,
        key=jax.random.key(config.seed),
    )


def _initial_state(run: Run) -> FederatedState:
    """Build the state before the first round, on the device(s)."""
    fed, model, spec = run.config.federation, run.inputs.assets.model, run.method.spec
    state = federated.init_state(
        run.method,
        _initial_adapter(run),
        lora.kernels_of(model.params, spec),
        model.params["head"],
        clients=fed.clients,
        heads=fed.heads,
        server_optimizer=run.setup.server_optimizer,
    )
    federated.check_method(run.method, state, run.federation.padded)
    # A copy, because the round donates its input.
    state = jax.tree.map(jnp.array, state)
    return federated.place(state, federated.everywhere(run.setup.execution.mesh))


def _initial_adapter(run: Run) -> Adapter:
    """Draw the initial adapter, or continue from the one that the config names."""
    spec, warm_start = run.method.spec, run.setup.warm_start
    init = run.config.lora.lora_init
    adapter = lora.init(spec, jax.random.fold_in(run.key, 1), method=init)
    return adapter if warm_start is None else interop.warm_start(spec, adapter, warm_start)


def _data_digest(run: Run) -> str:
    """Digest all examples as tokens, and which client has which."""
    digest = hashlib.sha256()
    assets = run.inputs.assets
    splits = (assets.train, assets.validation, assets.test)
    for array in jax.tree.leaves((splits, list(run.federation.members))):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
