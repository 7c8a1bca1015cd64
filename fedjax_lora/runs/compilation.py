"""The compiled functions of a run, by everything they are compiled from.

A recipe is all that a program depends on besides its arguments. Runs with equal recipes (other
seeds, learning rates, partitions, numbers of rounds) can share one program, and do if they are
prepared with the same `CompiledFunctions`. What is not in a recipe cannot get into a program by
accident: the builders below see nothing else.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
from jax.sharding import Mesh

from fedjax_lora import federated, methods, models
from fedjax_lora.core.types import BatchShape
from fedjax_lora.evaluation import predict as prediction
from fedjax_lora.evaluation.predict import Predict
from fedjax_lora.federated import (
    CompiledRound,
    Execution,
    Head,
    LocalTraining,
    Objective,
    diagnostics,
    optimizers,
    transforms,
)
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Method


def _classification(module: Any, lengths: tuple[int, ...], **options: Any) -> Objective:
    unpadded = models.supports_unpadding(module)
    return federated.text_classification(module, lengths, unpadded=unpadded, **options)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "classification": _classification,
    "regression": functools.partial(_classification, regression=True),
    "language": functools.partial(federated.causal_lm, logits=models.logits),
}
"""What clients minimise, by the kind of the task."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How a model reads the data; see `OBJECTIVES`."""

    module: nn.Module
    lengths: tuple[int, ...]
    kind: str
    dropout: bool
    lora_dropout: float

    def objective(self) -> Objective:
        """What clients minimise."""
        return OBJECTIVES[self.kind](
            self.module, self.lengths, dropout=self.dropout, lora_dropout=self.lora_dropout
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundSpec:
    """Everything a compiled round depends on besides its arguments."""

    reading: InputSpec
    spec: LoraSpec
    method: str
    optimizer: str
    clip: float | None
    batch: int
    shapes: tuple[BatchShape, ...]
    heads: Head
    execution: Execution
    prox: float
    updates: tuple[str, ...]
    server_optimizer: str
    measure: bool

    def make_method(self) -> Method:
        """The method, on the round's spec."""
        return methods.make(self.method, self.spec)

    def training(self) -> LocalTraining:
        """Local training, to be completed by the method."""
        return LocalTraining(
            self.reading.objective(),
            optimizers.optimizer(self.optimizer, clip=self.clip),
            separate_fixed=self.reading.lora_dropout > 0,
            shapes=self.shapes,
            prox=self.prox,
        )


def build_round(recipe: RoundSpec) -> CompiledRound:
    """The round of a recipe, see `fedjax_lora.federated.compile_round`."""
    method = recipe.make_method()
    look = diagnostics.make_diagnostics(
        recipe.spec,
        train_head=recipe.heads != "frozen",
        optimizer=optimizers.optimizer(recipe.optimizer, clip=recipe.clip),
    )
    return federated.compile_round(
        method,
        recipe.training(),
        heads=recipe.heads,
        execution=recipe.execution,
        updates=transforms.make_transforms(recipe.updates, method),
        server_optimizer=transforms.make_server_optimizer(recipe.server_optimizer, method),
        measure=look if recipe.measure else None,
    )


def build_predict(reading: InputSpec, batch: int, mesh: Mesh | None) -> Predict:
    """The predictions of any method's global model, in batches of about this size."""
    return prediction.make_predict(reading.objective(), batch=batch, mesh=mesh)


class CompiledFunctions(NamedTuple):
    """Programs made so far; see `programs`."""

    round: Callable[[RoundSpec], CompiledRound]
    predict: Callable[[InputSpec, int, Mesh | None], Predict]
    least_steps: int  # plans are padded to so many local steps, or more if a client takes more


def programs(*, least_steps: int = 0) -> CompiledFunctions:
    """Programs for runs to share.

    Args:
      least_steps: the most local steps that any client of any of the runs takes in a round. Plans
        of one shape need one compilation; no step more is computed.
    """
    return CompiledFunctions(
        functools.cache(build_round), functools.cache(build_predict), least_steps
    )
