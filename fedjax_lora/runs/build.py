"""Build a run from its config: plans, compiled functions, evaluation and changes of ranks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_lora import federated, models
from fedjax_lora.core.types import Params
from fedjax_lora.evaluation.evaluator import LabelledSplit, make_evaluate
from fedjax_lora.evaluation.task_types import Scores
from fedjax_lora.federated import FederatedState
from fedjax_lora.federated.planning import Federation
from fedjax_lora.runs.choices import check_names, resolve
from fedjax_lora.runs.compilation import CompiledFunctions, InputSpec, RoundSpec, programs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.loading import Assets, execution_of, load_assets
from fedjax_lora.runs.prepared import Inputs, Run
from fedjax_lora.runs.rank_updates import make_rank_updates
from fedjax_lora.runs.setup import Setup, set_up


def build(
    config: RunConfig, assets: Assets | None = None, shared: CompiledFunctions | None = None
) -> Run:
    """Build a run from its config.

    Args:
      config: the run.
      assets: data and model loaded before, to share between runs.
      shared: compiled functions of other runs, used where they fit; see
        `fedjax_lora.runs.compilation`.

    Raises:
      InputError: choices that are unknown, or do not go with the data, the model or each other.
    """
    if assets is None:
        check_names(config)
    choices = resolve(config)
    assets = load_assets(config) if assets is None else assets
    setup = set_up(config, choices, assets, execution_of(config))
    return assemble(config, setup, assets, shared or programs())


def assemble(config: RunConfig, setup: Setup, assets: Assets, shared: CompiledFunctions) -> Run:
    """Put a run together: plan its rounds, place data and model, compile functions.

    Args:
      config: the run.
      setup: what is decided before anything is compiled.
      assets: its data and model.
      shared: compiled functions.

    Raises:
      InputError: clients without examples; scores of clients that task or data do not have.
    """
    round_spec = make_round_spec(config, assets, setup)
    federation = make_federation(config, assets, setup, least_steps=shared.least_steps)
    mesh = setup.execution.mesh
    place = functools.partial(federated.place, where=federated.everywhere(mesh))
    base = models.frozen_base(assets.model)
    base = federated.place(base, federated.base_sharding(base, mesh))
    train = place(assets.train)
    return Run(
        config=config,
        inputs=Inputs(assets, base, train),
        federation=federation,
        setup=setup,
        round_spec=round_spec,
        step=shared.round(round_spec),
        evaluate=_make_evaluate(config, assets, base, round_spec, shared, place),
        ranks=make_rank_updates(
            setup.allocation,
            round_spec,
            federation,
            shared.client_update,
            base=base,
            train=train,
            validation=assets.validation,
            place=place,
            batch=config.execution.eval_batch,
            init=config.lora.lora_init,
            key=jax.random.key(config.seed),
        ),
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
        faults=setup.faults,
        amount=_tokens_to_learn(assets) if fed.client_weights == "tokens" else None,
    )


def make_round_spec(config: RunConfig, assets: Assets, setup: Setup) -> RoundSpec:
    """Collect everything that the compiled round of a run depends on.

    Args:
      config: the run.
      assets: its data and model.
      setup: what is decided before anything is compiled.
    """
    fed, local = config.federation, config.local
    inputs = InputSpec(
        module=assets.model.module,
        lengths=setup.lengths,
        type=assets.task.task.type,
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
        shapes=setup.shapes,
        heads=fed.heads,
        execution=setup.execution,
        prox=local.prox,
        updates=fed.updates,
        server_optimizer=fed.server_optimizer,
        measure=config.execution.measure,
    )


def _tokens_to_learn(assets: Assets) -> np.ndarray:
    """Count the tokens that are learned from each training example, ``int32[E]``."""
    tokens = assets.train
    if assets.task.task.type == "language":
        return tokens.types.sum(axis=1)
    return tokens.length


def _make_evaluate(
    config: RunConfig,
    assets: Assets,
    base: Params,
    round_spec: RoundSpec,
    shared: CompiledFunctions,
    place: Callable[[Any], Any],
) -> Callable[[FederatedState], Scores]:
    """Build the evaluation on the test split and, if there is one, the validation split."""
    batch = config.execution.eval_batch
    splits = [LabelledSplit("", assets.task.test, assets.test)]
    if assets.task.validation is not None and assets.validation is not None:
        splits.append(LabelledSplit("validation_", assets.task.validation, assets.validation))
    return make_evaluate(
        assets.task,
        assets.model,
        round_spec.spec,
        splits,
        predict=shared.predict(round_spec.inputs, batch, round_spec.execution.mesh),
        base=base,
        place=place,
        max_length=config.data.max_length,
        batch=batch,
    )
