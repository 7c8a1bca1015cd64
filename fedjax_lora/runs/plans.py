"""What a run's setup means for its rounds: their plans, and everything they are compiled for."""

import numpy as np

from fedjax_lora.data import Tokens
from fedjax_lora.federated.attacks import Attack
from fedjax_lora.federated.faults import attacks_of
from fedjax_lora.federated.planning import Federation
from fedjax_lora.runs.compilation import RoundSpec, training_inputs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.setup import Setup


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
    if setup.server is not None:
        drawn = setup.server.answers(fed.cohort)
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
        inputs=training_inputs(
            config, assets.model.module, setup.lengths, task_type=assets.task.task.type
        ),
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
        server=fed.server_mode,
        server_optimizer=fed.server_optimizer,
        measure=config.execution.measure,
    )


def _tokens_to_learn(assets: Assets, tokens: Tokens) -> np.ndarray:
    """Count the tokens that are learned from each training example, ``int32[E]``."""
    if assets.task.task.type == "language":
        return tokens.types.sum(axis=1)
    return tokens.length
