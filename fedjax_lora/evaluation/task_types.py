"""Task types: number of outputs, tokenisation, metrics and reference scores of each.

The objective that clients minimise depends on the task type too, see
`fedjax_lora.runs.compilation.OBJECTIVES`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora import data
from fedjax_lora.core.tokenizer import Tokenizer
from fedjax_lora.core.types import PyTree
from fedjax_lora.data import conversation_tokens, instruction_tokens
from fedjax_lora.evaluation import metrics, text_metrics
from fedjax_lora.evaluation.predict import AdaptedParams, Predict

__all__ = ["TASK_TYPES", "EvalContext", "EvalFn", "Scores", "TaskType"]

Scores = dict[str, Any]
"""Numbers by name; those by category or client are dictionaries."""

EvalFn = Callable[[AdaptedParams], Scores]
"""``(params) -> scores`` on a fixed split."""


class EvalContext(NamedTuple):
    """What the evaluation of a split needs besides its examples.

    Attributes:
      task: the task and its data.
      predict: predictions over a data set.
      place: puts a tree of arrays on the device(s).
      encode: tokenises a split as the task does.
      answer: ``(tokens) -> (params) -> texts``, generated answers to the prompts of `tokens`.
    """

    task: data.TaskData
    predict: Predict
    place: Callable[[PyTree], PyTree]
    encode: Callable[[data.Split], instruction_tokens.Encoded]
    answer: Callable[[data.Tokens], Callable[[AdaptedParams], list[str]]]


class TaskType(NamedTuple):
    """A type of task.

    Attributes:
      num_outputs: ``(task) -> int``, number of outputs of the model's head; None for a language
        model.
      encode: ``(task, split, tokenizer, max_length, cache_dir) -> Encoded``.
      make_eval_fn: ``(context, split, tokens) -> EvalFn``.
      reference_scores: ``(labels, initial_scores) -> Scores``, scores to compare those of a run
        with; ``initial_scores()`` evaluates the model before the first round.
      num_buckets: number of lengths that batches are padded to; one program is compiled for each.
    """

    num_outputs: Callable[[data.TaskData], int | None]
    encode: Callable[..., instruction_tokens.Encoded]
    make_eval_fn: Callable[[EvalContext, data.Split, data.Tokens], EvalFn]
    reference_scores: Callable[[np.ndarray, Callable[[], Scores]], Scores]
    num_buckets: int = 2


# ------------------------------------------------------------------- classification and regression


def _encode_texts(
    task: data.Task,
    split: data.Split,
    tokenizer: Tokenizer,
    max_length: int,
    cache_dir: str | Path | None,
) -> instruction_tokens.Encoded:
    tokens = data.encode(split, tokenizer, max_length=max_length, cache_dir=cache_dir)
    return instruction_tokens.Encoded(split, tokens, np.arange(len(split.texts)))


def _make_label_eval(context: EvalContext, split: data.Split, tokens: data.Tokens) -> EvalFn:
    task, tokens_on_device = context.task.task, context.place(tokens)
    # Papers often give the accuracy of tasks that have another metric.
    more = () if task.type == "regression" else ("accuracy",)
    recorded = metrics.recorded_names(task.metric, len(context.task.classes))
    names = tuple(dict.fromkeys((*recorded, *more)))

    def evaluate(params: AdaptedParams) -> Scores:
        output = context.predict(params, tokens_on_device)
        loss = metrics.mean_loss(tokens.label, output, regression=task.type == "regression")
        scores = {n: metrics.METRICS[n](tokens.label, output) for n in names} | {"loss": loss}
        return scores | _client_scores(context.task, split, tokens.label, output)

    return evaluate


def _client_scores(
    task: data.TaskData, split: data.Split, label: np.ndarray, output: np.ndarray
) -> Scores:
    """Score the test examples of each natural client: accuracy, or the loss of a regression task.

    Returns:
      The scores by client and their spread; ``{}`` for data without natural clients.
    """
    if split.groups is None or len(task.groups) < 2:
        return {}
    regression = task.task.type == "regression"
    name = "loss" if regression else "accuracy"
    score = (
        functools.partial(metrics.mean_loss, regression=True) if regression else metrics.accuracy
    )
    of_clients = metrics.by_group(score, split.groups, task.groups, label, output)
    spread = metrics.spread_over_clients([*of_clients.values()], lower_is_better=regression)
    return {f"{name}_by_client": of_clients, f"{name}_over_clients": spread}


def _majority_accuracy(labels: np.ndarray, initial_scores: Callable[[], Scores]) -> Scores:
    return {"majority_accuracy": float(np.bincount(labels).max() / len(labels))}


# ---------------------------------------------------------------------------------------- language


def _encode_completions(
    task: data.Task,
    split: data.Split,
    tokenizer: Tokenizer,
    max_length: int,
    cache_dir: str | Path | None,
) -> instruction_tokens.Encoded:
    if split.pairs is None:
        return conversation_tokens.encode_texts(split, tokenizer, max_length=max_length)
    encode = instruction_tokens.encode if split.turns is None else conversation_tokens.encode
    return encode(
        split,
        tokenizer,
        format=task.prompting.format,
        date=task.prompting.date,
        max_length=max_length,
        cache_dir=cache_dir,
    )


def _make_language_eval(context: EvalContext, split: data.Split, tokens: data.Tokens) -> EvalFn:
    tokens_on_device = context.place(tokens)
    metric = context.task.task.metric
    score_metric = None
    if metric in _LANGUAGE_METRICS:
        score_metric = _LANGUAGE_METRICS[metric](context, split, tokens)
    groupings = {"category": (tokens.label, context.task.classes)}
    if split.groups is not None:
        groupings["client"] = (split.groups, context.task.groups)

    def evaluate(params: AdaptedParams) -> Scores:
        sums = context.predict(params, tokens_on_device)
        scores: Scores = text_metrics.language_scores(sums)
        for grouping, (codes, names) in groupings.items():
            if len(names) > 1:
                scores[f"perplexity_by_{grouping}"] = text_metrics.perplexity_by(codes, names, sums)
        if of_clients := scores.get("perplexity_by_client"):
            scores["perplexity_over_clients"] = metrics.spread_over_clients(
                [*of_clients.values()], lower_is_better=True
            )
        return scores if score_metric is None else scores | {metric: score_metric(params)}

    return evaluate


def _make_choice_accuracy(
    context: EvalContext, split: data.Split, tokens: data.Tokens
) -> Callable[[AdaptedParams], float]:
    rows, question = instruction_tokens.expand_choices(split)
    encoded = context.encode(rows)
    question = question[encoded.index]
    tokens_on_device = context.place(encoded.tokens)

    def score(params: AdaptedParams) -> float:
        sums = context.predict(params, tokens_on_device)
        return text_metrics.choice_accuracy(question, encoded.tokens.label, sums)

    return score


def _make_answer_metric(
    make_metric: Callable[[], Callable[[Sequence[str], Sequence[str]], float]],
) -> Callable[[EvalContext, data.Split, data.Tokens], Callable[[AdaptedParams], float]]:
    def prepare(
        context: EvalContext, split: data.Split, tokens: data.Tokens
    ) -> Callable[[AdaptedParams], float]:
        metric = make_metric()  # before training and generation: a package may be missing
        answer = context.answer(tokens)
        return lambda params: metric(answer(params), split.pairs or [])

    return prepare


_LANGUAGE_METRICS: Mapping[str, Callable[..., Callable[[AdaptedParams], float]]] = {
    "choice_accuracy": _make_choice_accuracy,
    "rouge_l": _make_answer_metric(text_metrics.make_rouge_l),
    "exact_match": _make_answer_metric(lambda: text_metrics.exact_match),
}
"""Metrics that need more than the likelihood of the completions."""


def _initial_scores(labels: np.ndarray, initial_scores: Callable[[], Scores]) -> Scores:
    return {f"start_{name}": value for name, value in initial_scores().items()}


TASK_TYPES: dict[str, TaskType] = {
    "classification": TaskType(
        num_outputs=lambda task: len(task.classes),
        encode=_encode_texts,
        make_eval_fn=_make_label_eval,
        reference_scores=_majority_accuracy,
    ),
    "regression": TaskType(
        num_outputs=lambda task: 1,
        encode=_encode_texts,
        make_eval_fn=_make_label_eval,
        reference_scores=lambda labels, initial_scores: {},
    ),
    "language": TaskType(
        num_outputs=lambda task: None,
        encode=_encode_completions,
        make_eval_fn=_make_language_eval,
        reference_scores=_initial_scores,
        num_buckets=3,
    ),
}
"""Task types by the name in `fedjax_lora.data.Task.kind`."""
