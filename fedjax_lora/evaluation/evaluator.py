"""Evaluation of the global model of a federated state."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lora import data, lora, models
from fedjax_lora.core.types import ClientParams, Gain, Params, PyTree
from fedjax_lora.evaluation.generation.answers import make_answer_fn
from fedjax_lora.evaluation.predict import AdaptedParams, Predict
from fedjax_lora.evaluation.task_types import TASK_TYPES, EvalContext, Scores
from fedjax_lora.federated import FederatedState
from fedjax_lora.lora import LoraSpec

__all__ = ["LabelledSplit", "global_model", "make_evaluate"]


def global_model(state: FederatedState, spec: LoraSpec) -> tuple[ClientParams, Gain]:
    """Return the adapter, head and gain of the server's model; local heads are averaged.

    Args:
      state: state of the federation.
      spec: LoRA spec of the run.

    Returns:
      Adapter and head, and the gain ``[(L,) R]`` by path of all `R` components.
    """
    head = state.head
    if state.clients.head != ():
        head = jax.tree.map(lambda x: jnp.mean(x, axis=0), state.clients.head)
    return ClientParams(state.server.adapter, head), lora.uniform_gain(spec)


class LabelledSplit(NamedTuple):
    """The examples of one split, as text and as tokens.

    Attributes:
      prefix: prefix of the names of the split's scores; ``""`` for the test split.
      split: the texts.
      tokens: the same examples, tokenised.
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
    place: Callable[[PyTree], PyTree],
    max_length: int,
    batch: int,
) -> Callable[[FederatedState], Scores]:
    """Build the function that evaluates the global model of a state.

    Args:
      task: the task and its data.
      model: the base model, whose tokenizer and decoder language tasks need.
      spec: LoRA spec of the run.
      splits: splits to evaluate on.
      predict: predictions over a data set, see `fedjax_lora.evaluation.make_predict`.
      base: parameters of the base without a head, on the device(s).
      place: puts a tree of arrays on the device(s).
      max_length: tokens that texts are cut to.
      batch: prompts answered at once.

    Returns:
      A function ``(state) -> scores``; a score that is not finite is None.
    """
    task_type = TASK_TYPES[task.task.type]
    context = EvalContext(
        task=task,
        predict=predict,
        place=place,
        encode=lambda split: task_type.encode(task.task, split, model.tokenizer, max_length, None),
        answer=functools.partial(make_answer_fn, model, prompting=task.task.prompting, batch=batch),
    )
    eval_fns = {
        prefix: task_type.make_eval_fn(context, split, tokens) for prefix, split, tokens in splits
    }

    def evaluate(state: FederatedState) -> Scores:
        trained, gain = global_model(state, spec)
        server_base = lora.with_kernels(base, state.server.kernels)
        params = AdaptedParams(server_base, trained, gain)
        scores = {
            f"{prefix}{name}": value
            for prefix, eval_fn in eval_fns.items()
            for name, value in eval_fn(params).items()
        }
        return _finite(scores)

    return evaluate


def _finite(scores: Any) -> Any:
    """Replace numbers that are not finite by None, because JSON cannot express them."""
    if isinstance(scores, dict):
        return {name: _finite(value) for name, value in scores.items()}
    return scores if not isinstance(scores, float) or math.isfinite(scores) else None
