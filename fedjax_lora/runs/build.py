"""What a run needs before its first round, built from its config."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import data, federated, interop, lora, methods, models
from fedjax_lora.core import trees
from fedjax_lora.core.types import BatchShape, Params
from fedjax_lora.data.batch_shapes import padded_shapes, row_buckets, unpadded_shapes
from fedjax_lora.data.batching import length_buckets
from fedjax_lora.evaluation.evaluator import LabelledSplit, make_evaluate
from fedjax_lora.evaluation.task_types import TASK_TYPES, Scores
from fedjax_lora.federated import FederatedState, ranks, transforms
from fedjax_lora.federated.faults import make_faults
from fedjax_lora.federated.planning import Federation
from fedjax_lora.federated.ranks.reallocation import Reallocate, keep_ranks
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Method
from fedjax_lora.runs import config as configs
from fedjax_lora.runs import rank_updates
from fedjax_lora.runs.compilation import CompiledFunctions, InputSpec, RoundSpec, programs
from fedjax_lora.runs.config import LocalConfig, RunConfig
from fedjax_lora.runs.folder import environment
from fedjax_lora.runs.loading import Assets, load_assets, mesh_of


class Layout(NamedTuple):
    """What is decided before anything is compiled."""

    parts: data.Partition
    allocated: ranks.Allocation
    spec: LoraSpec
    method: Method
    updates: tuple[transforms.UpdateTransform, ...]
    server_optimizer: transforms.ServerOptimizer | None
    first: interop.LoadedAdapter | None  # the adapter to begin with, if it is not a fresh one


class Experiment(NamedTuple):
    """Everything a run needs before its first round."""

    config: RunConfig
    assets: Assets
    spec: LoraSpec
    method: Method
    federation: Federation
    rank: np.ndarray  # int32[N], at the start
    base: Params  # on the device(s), without the head
    data: data.Tokens  # training tokens on the device(s)
    state: FederatedState
    recipe: RoundSpec  # what ``round_fn`` is compiled from
    round_fn: federated.CompiledRound
    evaluate: Callable[[FederatedState], Scores]
    reference: Callable[[], Scores]  # what scores are to be compared with; before the first round
    reallocate: Reallocate
    review: ranks.RankSchedule | None
    updates: tuple[transforms.UpdateTransform, ...]
    privacy: Callable[[int], dict[str, float]]  # what to report after so many rounds


def lay_out(config: RunConfig, assets: Assets) -> Layout:
    """Divide the data, allocate the ranks and place the adapters; nothing is compiled.

    Raises:
      InputError: choices that are unknown, or do not go with the data, the model or each other.
    """
    fed, options = config.federation, config.lora
    first = None if options.adapter is None else interop.load_adapter(options.adapter, assets.model)
    parts = data.partition(
        fed.partition,
        assets.task.train.labels,
        clients=fed.clients,
        seed=config.seed,
        min_examples=fed.min_examples,
        groups=assets.task.train.groups,
    )
    spec_of = functools.partial(
        lora.make_spec,
        {name: part for name, part in assets.model.params.items() if name != "head"},
        targets=options.targets,
        alpha=options.alpha,
        scale=options.scale,
        layers=options.lora_layers,
    )
    allocated = ranks.allocate(
        fed.ranks,
        clients=fed.clients,
        seed=config.seed,
        quality=parts.quality,
        component_size=spec_of(rank=1).component_size,
    )
    spec = spec_of(rank=int(allocated.possible.max()))
    if first is not None:
        spec = interop.warm_start_spec(spec, first, keep_scale=options.alpha is None)
    method = methods.make(fed.method, spec)
    method.check(allocated.possible)
    updates = transforms.make_transforms(fed.updates, method)
    server_optimizer = transforms.make_server_optimizer(fed.server_optimizer, method)
    return Layout(parts, allocated, spec, method, updates, server_optimizer, first)


def arrange(
    config: RunConfig, assets: Assets, layout: Layout, *, least_steps: int = 0
) -> tuple[Federation, RoundSpec]:
    """Who does what in a round, and what a round is compiled from; nothing is compiled.

    Args:
      config: the run.
      assets: its data and model.
      layout: from `lay_out`.
      least_steps: see `fedjax_lora.runs.compilation.programs`.
    """
    fed, local, how = config.federation, config.local, config.execution
    clients_per_step = how.clients_per_step or federated.default_clients_per_step(fed.cohort)
    execution = federated.Execution(
        mode=how.mode, clients_per_step=clients_per_step, mesh=mesh_of(config)
    )
    longest = max(x.ids.shape[1] for x in assets[2:] if x is not None)
    kind = TASK_TYPES[assets.task.task.type]
    reading = InputSpec(
        module=assets.model.module,
        lengths=length_buckets(assets.train.length, longest=longest, most=kind.num_buckets),
        kind=assets.task.task.type,
        dropout=config.model.dropout != 0,
        lora_dropout=config.lora.lora_dropout,
    )
    federation = Federation(
        members=layout.parts.indices,
        length=assets.train.length,
        cohort=fed.cohort,
        padded=execution.padded_size(fed.cohort),
        batch=local.batch,
        epochs=local.epochs,
        max_steps=local.max_steps,
        by_length=local.group_by_length,
        seed=config.seed,
        least_steps=least_steps,
        faults=make_faults(fed.faults),
        amount=_amount(assets) if fed.client_weights == "tokens" else None,
    )
    recipe = RoundSpec(
        reading=reading,
        spec=layout.spec,
        method=fed.method,
        optimizer=local.optimizer,
        clip=local.clip,
        batch=local.batch,
        shapes=_shapes(reading, assets, local),
        heads=fed.heads,
        execution=execution,
        prox=local.prox,
        updates=fed.updates,
        server_optimizer=fed.server_optimizer,
        measure=how.measure,
    )
    return federation, recipe


def _shapes(reading: InputSpec, assets: Assets, local: LocalConfig) -> tuple[BatchShape, ...]:
    """What local steps are compiled for."""
    if reading.objective().unpad is None:
        return padded_shapes(row_buckets(local.batch), reading.lengths)
    by_length = local.group_by_length
    return unpadded_shapes(
        assets.train.length, reading.lengths, batch=local.batch, by_length=by_length
    )


def prepare(
    config: RunConfig, assets: Assets | None = None, shared: CompiledFunctions | None = None
) -> Experiment:
    """Divide the data, place the adapters and build the compiled functions of a run.

    Args:
      config: the run.
      assets: data and model loaded before, to share between runs.
      shared: programs of other runs, used where they fit; see `fedjax_lora.runs.compilation`.
    """
    assets = load_assets(config) if assets is None else assets
    shared = programs() if shared is None else shared
    fed, options, how = config.federation, config.lora, config.execution
    layout = lay_out(config, assets)
    spec, method, allocated = layout.spec, layout.method, layout.allocated
    federation, recipe = arrange(config, assets, layout, least_steps=shared.least_steps)
    privacy = transforms.make_privacy_report(layout.updates, cohort=fed.cohort, clients=fed.clients)
    mesh = mesh_of(config)
    place = lambda tree: federated.place(tree, federated.everywhere(mesh))  # noqa: E731
    frozen = models.frozen_base(assets.model)
    base = federated.place(frozen, federated.base_sharding(frozen, mesh))
    train_data = place(assets.train)
    root = jax.random.key(config.seed)
    adapter = lora.init(spec, jax.random.fold_in(root, 1), method=options.lora_init)
    if layout.first is not None:
        adapter = interop.warm_start(spec, adapter, layout.first)
    kernels = trees.flat(assets.model.params)
    state = federated.init_state(
        method,
        adapter,
        {target.path: kernels[f"{target.path}/kernel"] for target in spec.targets},
        assets.model.params["head"],
        clients=fed.clients,
        heads=fed.heads,
        server_optimizer=layout.server_optimizer,
    )
    federated.check_method(method, state, federation.padded)
    # A copy, because a round gives its input state's memory back.
    state = place(jax.tree.map(jnp.array, state))
    predict = shared.predict(recipe.reading, how.eval_batch, mesh)
    evaluate = make_evaluate(
        assets.task,
        assets.model,
        spec,
        _evaluated(assets),
        predict=predict,
        base=base,
        place=place,
        max_length=config.data.max_length,
        batch=how.eval_batch,
    )
    kind = TASK_TYPES[assets.task.task.type]
    reference = lambda: kind.reference_scores(assets.test.label, lambda: evaluate(state))  # noqa: E731
    reallocate = keep_ranks
    if allocated.schedule is not None:
        reallocate = rank_updates.make_reallocate(
            allocated.schedule,
            recipe,
            federation,
            base=base,
            train=train_data,
            validation=None if assets.validation is None else place(assets.validation),
            batch=how.eval_batch,
            init=options.lora_init,
            key=root,
        )
    return Experiment(
        config, assets, spec, method, federation, allocated.ranks, base, train_data, state,
        recipe, shared.round(recipe), evaluate, reference, reallocate, allocated.schedule,
        layout.updates, privacy,
    )  # fmt: skip


def _evaluated(assets: Assets) -> list[LabelledSplit]:
    """The splits that a run evaluates: test and, if there is one, validation."""
    splits = [LabelledSplit("", assets.task.test, assets.test)]
    if assets.task.validation is not None and assets.validation is not None:
        splits.append(LabelledSplit("validation_", assets.task.validation, assets.validation))
    return splits


def _amount(assets: Assets) -> np.ndarray:
    """Tokens that are learned from each training example, ``int32[E]``."""
    tokens = assets.train
    if assets.task.task.type == "language":
        return tokens.types.sum(axis=1)
    return tokens.length


def about(experiment: Experiment) -> dict[str, Any]:
    """What a run's checkpoints say of it."""
    made = {"config": configs.to_dict(experiment.config), "environment": environment()}
    return made | inputs(experiment)


def inputs(experiment: Experiment) -> dict[str, str]:
    """Digests of what a run reads."""
    return {"base": experiment.assets.model.fingerprint, "data": data_digest(experiment)}


def data_digest(experiment: Experiment) -> str:
    """Hex sha256 of all examples as tokens, and of who has which."""
    total = hashlib.sha256()
    for array in jax.tree.leaves((experiment.assets[2:], list(experiment.federation.members))):
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array))
    return total.hexdigest()
