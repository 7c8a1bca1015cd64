"""The model that the server would hand out, and what it scores."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lora import data, federated, lora, models
from fedjax_lora.core.types import ClientParams, Params
from fedjax_lora.evaluation.generation.answers import make_answer
from fedjax_lora.evaluation.predict import Global, Predict
from fedjax_lora.evaluation.task_types import TASK_TYPES, EvalContext, Scores
from fedjax_lora.federated import FederatedState
from fedjax_lora.lora import LoraSpec


def global_model(state: FederatedState, spec: LoraSpec) -> tuple[ClientParams, lora.Gain]:
    """The adapter, head and gains the server would hand out; local heads are averaged."""
    head = state.head
    if state.clients.head != ():
        head = jax.tree.map(lambda x: jnp.mean(x, axis=0), state.clients.head)
    return ClientParams(state.server.adapter, head), lora.uniform_gain(spec)


class LabelledSplit(NamedTuple):
    """The examples of one split, as text and as tokens.

    Attributes:
      prefix: of the names of its scores, ``""`` for the test split.
      split: the texts.
      tokens: the same, tokenised.
    """

    prefix: str
    split: data.Split
    tokens: data.Tokens


def make_evaluate(
    task: data.TaskData,
    model: models.Pretrained,
    spec: LoraSpec,
    splits: Sequence[LabelledSplit],
    *,
    predict: Predict,
    base: Params,
    place: Callable[[Any], Any],
    max_length: int,
    batch: int,
) -> Callable[[FederatedState], Scores]:
    """Build the function that evaluates the global model of a state.

    Args:
      task: the task.
      model: the base model, whose tokenizer and decoder language tasks need.
      spec: where the adapter is.
      splits: what is evaluated.
      predict: the outputs of a model over a data set.
      base: the parameters without the head, on the device(s).
      place: puts arrays on the device(s).
      max_length: tokens that texts are cut to.
      batch: prompts answered at once.
    """
    task_type = TASK_TYPES[task.task.type]
    tools = EvalContext(
        task=task,
        predict=predict,
        place=place,
        encode=lambda split: task_type.encode(task.task, split, model.tokenizer, max_length, None),
        answer=functools.partial(
            make_answer, model, new_tokens=task.task.prompting.answer_tokens, batch=batch
        ),
    )
    judges = {prefix: task_type.judge(tools, split, tokens) for prefix, split, tokens in splits}

    def evaluate(state: FederatedState) -> Scores:
        trained, gain = global_model(state, spec)
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
