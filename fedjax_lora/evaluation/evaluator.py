"""The model that the server would hand out, and what it scores."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lora import federated, lora
from fedjax_lora.core.types import Params, Trained
from fedjax_lora.evaluation.generation.answers import make_answer
from fedjax_lora.evaluation.predict import Global, Predict
from fedjax_lora.evaluation.task_types import KINDS, Scores, Tools
from fedjax_lora.federated import FederatedState
from fedjax_lora.lora import Template
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.loading import Assets


def global_model(state: FederatedState, template: Template) -> tuple[Trained, lora.Gain]:
    """The adapter, head and gains the server would hand out; local heads are averaged."""
    head = state.head
    if state.clients.head != ():
        head = jax.tree.map(lambda x: jnp.mean(x, axis=0), state.clients.head)
    return Trained(state.server.adapter, head), lora.uniform_gain(template)


def make_evaluate(
    config: RunConfig,
    assets: Assets,
    template: Template,
    predict: Predict,
    base: Params,
    place: Callable[[Any], Any],
) -> Callable[[FederatedState], Scores]:
    """A function that judges the global model of a state on the test and validation examples.

    Args:
      config: the run's.
      assets: the run's.
      template: the adapter's places and sizes.
      predict: the outputs of a model over a data set.
      base: the parameters without the head, on the device(s).
      place: puts arrays on the device(s).
    """
    task, model = assets.task, assets.model
    kind, length = KINDS[task.task.kind], config.data.max_length
    tools = Tools(
        task=task,
        predict=predict,
        place=place,
        encode=lambda split: kind.encode(task.task, split, model.tokenizer, length, None),
        answer=functools.partial(
            make_answer,
            model,
            new_tokens=task.task.prompting.answer_tokens,
            batch=config.execution.eval_batch,
        ),
    )
    splits = [("", task.test, assets.test)]
    if task.validation is not None and assets.validation is not None:
        splits.append(("validation_", task.validation, assets.validation))
    judges = {prefix: kind.judge(tools, split, tokens) for prefix, split, tokens in splits}

    def evaluate(state: FederatedState) -> Scores:
        trained, gain = global_model(state, template)
        model = Global(federated.with_kernels(base, state.server.kernels), trained, gain)
        found = {
            f"{prefix}{name}": value
            for prefix, judge in judges.items()
            for name, value in judge(model).items()
        }
        return _finite(found)

    return evaluate


def _finite(scores: Any) -> Any:
    """Scores with None for what is not finite: JSON has no word for a model that has diverged."""
    if isinstance(scores, dict):
        return {name: _finite(value) for name, value in scores.items()}
    return scores if not isinstance(scores, float) or math.isfinite(scores) else None
