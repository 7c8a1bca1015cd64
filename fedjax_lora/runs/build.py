"""Build a run from its config: plans, compiled functions, evaluation and changes of ranks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from fedjax_lora import federated, models
from fedjax_lora.core.types import Params
from fedjax_lora.evaluation.evaluator import LabelledSplit, make_evaluate
from fedjax_lora.evaluation.task_types import Scores
from fedjax_lora.federated import FederatedState
from fedjax_lora.federated.faults import attacks_of
from fedjax_lora.runs.choices import check_names, resolve
from fedjax_lora.runs.compilation import CompiledFunctions, RoundSpec, at_precision, programs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.cost.clients_per_step import choose_clients_per_step
from fedjax_lora.runs.evaluations import Evaluations, part_of
from fedjax_lora.runs.fairness import check_clients_can_be_scored
from fedjax_lora.runs.late_clients import make_events
from fedjax_lora.runs.loading import Assets, execution_of, load_assets
from fedjax_lora.runs.plans import make_federation, make_round_spec
from fedjax_lora.runs.poison import backdoor_splits
from fedjax_lora.runs.prepared import Inputs, Run
from fedjax_lora.runs.rank_updates import make_rank_updates
from fedjax_lora.runs.setup import Setup, set_up


def build(
    config: RunConfig,
    assets: Assets | None = None,
    shared: CompiledFunctions | None = None,
    *,
    together: int = 1,
    base: Params | None = None,
) -> Run:
    """Build a run from its config.

    Args:
      config: the run.
      assets: data and model loaded before, to share between runs.
      shared: compiled functions of other runs, used where they fit; see
        `fedjax_lora.runs.compilation`.
      together: runs that are trained at once, see `fedjax_lora.runs.together`.
      base: frozen base of a run with the same model and devices, to share its memory.

    Raises:
      InputError: choices that are unknown, or do not go with the data, the model or each other.
    """
    if assets is None:
        check_names(config)
    choices = resolve(config)
    assets = load_assets(config) if assets is None else assets
    setup = set_up(config, choices, assets, execution_of(config))
    config, setup = choose_clients_per_step(config, assets, setup, together=together)
    return assemble(config, setup, assets, shared or programs(), base=base)


def assemble(
    config: RunConfig,
    setup: Setup,
    assets: Assets,
    shared: CompiledFunctions,
    *,
    base: Params | None = None,
) -> Run:
    """Put a run together: plan its rounds, place data and model, compile functions.

    Args:
      config: the run.
      setup: what is decided before anything is compiled.
      assets: its data and model.
      shared: compiled functions.
      base: see `build`.

    Raises:
      InputError: clients without examples; scores of clients that task or data do not have.
    """
    round_spec = make_round_spec(config, assets, setup)
    federation = make_federation(config, assets, setup, least_steps=shared.least_steps)
    mesh = setup.execution.mesh
    place = functools.partial(federated.place, where=federated.everywhere(mesh))
    if base is None:
        base = models.frozen_base(assets.model)
        base = federated.place(base, federated.base_sharding(base, mesh))
    train = place(setup.training.tokens)
    return Run(
        config=config,
        inputs=Inputs(assets, base, train),
        federation=federation,
        setup=setup,
        round_spec=round_spec,
        step=shared.round(round_spec),
        events=make_events(config, setup.server, federation),
        evaluations=_make_evaluations(config, assets, base, round_spec, setup, shared, place),
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


def _make_evaluations(
    config: RunConfig,
    assets: Assets,
    base: Params,
    round_spec: RoundSpec,
    setup: Setup,
    shared: CompiledFunctions,
    place: Callable[[Any], Any],
) -> Evaluations:
    """Build the evaluations on the test split, or a part of it, and on all other splits."""
    check_clients_can_be_scored(config, assets.task)
    batch, count = config.execution.eval_batch, config.execution.eval_examples
    test, splits = LabelledSplit("", assets.task.test, assets.test), []
    if assets.task.validation is not None and assets.validation is not None:
        splits.append(LabelledSplit("validation_", assets.task.validation, assets.validation))
    splits += backdoor_splits(attacks_of(setup.faults), assets)
    build_evaluation = functools.partial(
        make_evaluate,
        assets.task,
        assets.model,
        round_spec.spec,
        predict=shared.predict(round_spec.inputs, batch, round_spec.execution.mesh),
        base=base,
        place=place,
        max_length=config.data.max_length,
        batch=batch,
    )

    def evaluate(splits: Sequence[LabelledSplit]) -> Callable[[FederatedState], Scores]:
        # Generated answers too: predictions alone have the precision of the objective.
        return at_precision(config.model.precision, build_evaluation(splits))

    total = len(assets.test.label)
    part = part_of(test, count, config.seed) if count is not None and count < total else None
    return Evaluations(
        test=evaluate([test]),
        others=evaluate(splits),
        part=evaluate([part]) if part is not None else None,
        examples=(total, count or total),
    )
