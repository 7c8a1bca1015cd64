"""The compiled functions of a run, each built from a spec of all it depends on.

A `RoundSpec` is everything that a compiled round depends on besides its arguments. Runs with equal
specs (other seeds, learning rates, partitions, numbers of rounds) can share one program, and do if
they are built with the same `CompiledFunctions`. What is not in a spec cannot get into a program by
accident: the builders below see nothing else.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh

from fedjax_lora import federated, methods, models
from fedjax_lora.core import registry
from fedjax_lora.core.types import BatchShape
from fedjax_lora.evaluation.predict import Predict, make_predict
from fedjax_lora.federated import (
    ClientUpdateFn,
    CompiledRound,
    Execution,
    Head,
    LocalTraining,
    Objective,
    diagnostics,
    optimizers,
    transforms,
)
from fedjax_lora.federated.clock import SERVERS
from fedjax_lora.federated.faults import attacks_of, make_faults
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Method
from fedjax_lora.runs.config import RunConfig


def _classification(module: Any, lengths: tuple[int, ...], **options: Any) -> Objective:
    unpadded = models.supports_unpadding(module)
    return federated.text_classification(module, lengths, unpadded=unpadded, **options)


def _language(module: Any, lengths: tuple[int, ...], **options: Any) -> Objective:
    logits = functools.partial(models.logits, softcap=module.config.logit_softcap)
    return federated.causal_lm(module, lengths, logits=logits, **options)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "classification": _classification,
    "regression": functools.partial(_classification, regression=True),
    "language": _language,
}
"""What clients minimise, by task type."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How a model reads the data.

    Attributes:
      module: the base model.
      lengths: lengths in tokens that batches are padded to, ascending.
      type: task type, a name in `OBJECTIVES`.
      dropout: whether the base has dropout in training.
      lora_dropout: dropout rate on the input of the trained components.
      precision: of float32 products, ``default`` or ``highest``.
    """

    module: nn.Module
    lengths: tuple[int, ...]
    type: str
    dropout: bool
    lora_dropout: float
    precision: str = "default"

    def objective(self) -> Objective:
        """Build what clients minimise."""
        made = OBJECTIVES[self.type](
            self.module, self.lengths, dropout=self.dropout, lora_dropout=self.lora_dropout
        )
        at = functools.partial(at_precision, self.precision)
        return made._replace(loss=at(made.loss), outputs=at(made.outputs))


def training_inputs(
    config: RunConfig, module: nn.Module, lengths: tuple[int, ...], *, task_type: str
) -> InputSpec:
    """Return how a model reads the data in the training of a config.

    Args:
      config: the run.
      module: the base model.
      lengths: lengths in tokens that batches are padded to, ascending.
      task_type: a name in `OBJECTIVES`.
    """
    return InputSpec(
        module=module,
        lengths=lengths,
        type=task_type,
        dropout=config.model.dropout != 0,
        lora_dropout=config.lora.lora_dropout,
        precision=config.model.precision,
    )


def at_precision(precision: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Trace a function, and so its gradient, with this precision of products."""
    if precision == "default":
        return function

    @functools.wraps(function)
    def traced(*args: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return function(*args)

    return traced


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundSpec:
    """Everything that a compiled round depends on besides its arguments.

    Attributes:
      inputs: how the model reads the data.
      spec: LoRA spec of the federation.
      method: method with its options.
      optimizer: local optimizer with its options.
      clip: global norm that each gradient is clipped to, if any.
      batch: examples in a local batch.
      shapes: shapes of the local steps, ascending.
      heads: what happens to the task head.
      execution: how a cohort is executed.
      prox: weight of FedProx's term.
      updates: transforms of the clients' updates, with their options.
      attacks: what attackers do, with its options.
      server: how late clients are mixed, by the server with its options.
      server_optimizer: server optimizer with its options.
      measure: whether every round is measured.
    """

    inputs: InputSpec
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
    attacks: tuple[str, ...]
    server: str
    server_optimizer: str
    measure: bool

    def make_method(self) -> Method:
        """Build the method on the round's LoRA spec."""
        return methods.make(self.method, self.spec)

    def training(self) -> LocalTraining:
        """Build the local training, which a round completes with the method's hooks."""
        return LocalTraining(
            self.inputs.objective(),
            optimizers.optimizer(self.optimizer, clip=self.clip),
            separate_fixed=self.inputs.lora_dropout > 0,
            shapes=self.shapes,
            prox=self.prox,
        )


def build_round(spec: RoundSpec) -> CompiledRound:
    """Build the round of a spec, see `fedjax_lora.federated.compile_round`."""
    method = spec.make_method()
    measure = diagnostics.make_diagnostics(
        spec.spec,
        train_head=spec.heads != "frozen",
        optimizer=optimizers.optimizer(spec.optimizer, clip=spec.clip),
        clients_hold_kernels=method.clients_hold_kernels,
    )
    server = registry.build(spec.server, SERVERS, "server")
    return federated.compile_round(
        method,
        spec.training(),
        heads=spec.heads,
        execution=spec.execution,
        updates=transforms.make_transforms(spec.updates, method),
        server_optimizer=transforms.make_server_optimizer(spec.server_optimizer, method),
        attacks=attacks_of(make_faults(spec.attacks)),
        staleness=server and server.staleness,
        measure=measure if spec.measure else None,
    )


def build_client_update(spec: RoundSpec) -> ClientUpdateFn:
    """Build broadcast and local training alone, see `fedjax_lora.federated.make_client_update`."""
    return federated.make_client_update(
        spec.make_method(), spec.training(), heads=spec.heads, execution=spec.execution
    )


def build_predict(inputs: InputSpec, batch: int, mesh: Mesh | None) -> Predict:
    """Build the predictions of any method's global model, in batches of about this size."""
    return make_predict(inputs.objective(), batch=batch, mesh=mesh)


class CompiledFunctions(NamedTuple):
    """Builders of compiled functions that return an earlier result for an equal spec.

    Attributes:
      round: builds a round, see `build_round`.
      client_update: builds the first half of a round, see `build_client_update`.
      predict: builds predictions, see `build_predict`.
      least_steps: plans are padded to this many local steps, or more if a client takes more.
    """

    round: Callable[[RoundSpec], CompiledRound]
    client_update: Callable[[RoundSpec], ClientUpdateFn]
    predict: Callable[[InputSpec, int, Mesh | None], Predict]
    least_steps: int


def programs(*, least_steps: int = 0) -> CompiledFunctions:
    """Return compiled functions for runs to share.

    Args:
      least_steps: the most local steps that any client of any of the runs takes in a round. Plans
        of one shape need one compilation; no additional step is computed.
    """
    return CompiledFunctions(
        round=functools.cache(build_round),
        client_update=functools.cache(build_client_update),
        predict=functools.cache(build_predict),
        least_steps=least_steps,
    )
