"""The compiled functions of a run, by everything they are compiled from.

A recipe is all that a program depends on besides its arguments. Runs with equal recipes (other
seeds, learning rates, partitions, numbers of rounds) can share one program, and do if they are
prepared with the same `Programs`. What is not in a recipe cannot get into a program by accident:
the builders below see nothing else.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from fedjax_lora import clients, evaluation, methods, optimizers, rounds
from fedjax_lora.adapters import Template
from fedjax_lora.clients import Mode, Objective
from fedjax_lora.evaluation import Predict
from fedjax_lora.rounds import Head, RoundFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a model reads the data; see `fedjax_lora.clients.text_classification`."""

    module: nn.Module
    lengths: tuple[int, ...]
    regression: bool
    dropout: bool
    lora_dropout: float

    def objective(self) -> Objective:
        """What clients minimise."""
        return clients.text_classification(
            self.module,
            self.lengths,
            regression=self.regression,
            dropout=self.dropout,
            lora_dropout=self.lora_dropout,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundRecipe:
    """Everything a compiled round depends on besides its arguments."""

    reading: Reading
    template: Template
    method: str
    optimizer: str
    clip: float | None
    batch: int
    heads: Head
    mode: Mode
    wave: int
    devices: int | None


def build_round(recipe: RoundRecipe) -> RoundFn:
    """The round of a recipe, see `fedjax_lora.rounds.make_round`."""
    method = methods.make(recipe.method, recipe.template)
    train = clients.make_training(
        recipe.reading.objective(),
        optimizers.optimizer(recipe.optimizer, clip=recipe.clip),
        penalty=method.penalty,
        rates=method.rates,
        split_gains=recipe.reading.lora_dropout > 0,
        rows=clients.row_buckets(recipe.batch),
    )
    return rounds.make_round(
        method,
        recipe.template,
        train,
        heads=recipe.heads,
        mode=recipe.mode,
        wave=recipe.wave,
        mesh=clients.client_mesh(recipe.devices) if recipe.mode == "sharded" else None,
    )


def build_predict(reading: Reading, batch: int) -> Predict:
    """The predictions of any method's global model, in batches of this size."""
    return evaluation.make_predict(reading.objective(), batch=batch)


class Programs(NamedTuple):
    """Programs made so far; see `programs`."""

    round: Callable[[RoundRecipe], RoundFn]
    predict: Callable[[Reading, int], Predict]
    least_steps: int  # plans are padded to so many local steps, or more if a client takes more


def programs(*, least_steps: int = 0) -> Programs:
    """Programs for runs to share.

    Args:
      least_steps: the most local steps that any client of any of the runs takes in a round. Plans
        of one shape need one compilation; no step more is computed.
    """
    return Programs(functools.cache(build_round), functools.cache(build_predict), least_steps)
