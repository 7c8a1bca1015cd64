"""What the kind of a task decides outside of training: tokens, the model's outputs, and scores.

What clients minimise follows from it too, see `fedjax_lora.runs.compilation.OBJECTIVES`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora import data
from fedjax_lora.data import instruction_tokens
from fedjax_lora.evaluation import metrics
from fedjax_lora.evaluation.predict import Global, Predict

Scores = dict[str, Any]
"""Numbers by name; those by category or client are dictionaries."""


EvalFn = Callable[[Global], Scores]


class EvalContext(NamedTuple):
    """What judges work with."""

    task: data.TaskData
    predict: Predict
    place: Callable[[Any], Any]  # onto the device(s)
    encode: Callable[[data.Split], instruction_tokens.Encoded]
    answer: Callable[[data.Tokens], Callable[[Global], list[str]]]


class TaskType(NamedTuple):
    """A kind of task.

    Attributes:
      outputs: how many numbers a model's head makes; None for a language model.
      encode: ``(task, split, tokenizer, max_length, cache_dir)`` to the split and its tokens.
      judge: ``(tools, split, tokens) -> EvalFn``.
      buckets: how many lengths batches are padded to; each is compiled.
      reference: ``(test labels, scores of the model before the first round, as a function)`` to
        what a run's scores are to be compared with.
    """

    outputs: Callable[[data.TaskData], int | None]
    encode: Callable[..., instruction_tokens.Encoded]
    judge: Callable[[EvalContext, data.Split, data.Tokens], EvalFn]
    reference: Callable[[np.ndarray, Callable[[], Scores]], Scores]
    buckets: int = 2


# ------------------------------------------------------------------------------- labels and scores


def _encode_texts(
    task: data.Task, split: data.Split, tokenizer: Any, max_length: int, cache_dir: Path | None
) -> instruction_tokens.Encoded:
    made = data.encode(split, tokenizer, max_length=max_length, cache_dir=cache_dir)
    return instruction_tokens.Encoded(split, made, np.arange(len(split.texts)))


def _judge_labels(tools: EvalContext, split: data.Split, tokens: data.Tokens) -> EvalFn:
    task, placed = tools.task.task, tools.place(tokens)

    def judge(model: Global) -> Scores:
        output = tools.predict(model.base, placed, model.trained, model.gain)
        loss = metrics.mean_loss(tokens.label, output, regression=task.type == "regression")
        # Papers often give the accuracy of tasks that have another metric.
        also = () if task.type == "regression" else ("accuracy",)
        names = dict.fromkeys((task.metric, *also))
        return {n: metrics.METRICS[n](tokens.label, output) for n in names} | {"loss": loss}

    return judge


def _majority(label: np.ndarray, start: Callable[[], Scores]) -> Scores:
    return {"majority_accuracy": float(np.bincount(label).max() / len(label))}


# ---------------------------------------------------------------------------------------- language


def _encode_completions(
    task: data.Task, split: data.Split, tokenizer: Any, max_length: int, cache_dir: Path | None
) -> instruction_tokens.Encoded:
    return instruction_tokens.encode(
        split,
        tokenizer,
        format=task.prompting.format,
        max_length=max_length,
        cache_dir=cache_dir,
    )


def _judge_language(tools: EvalContext, split: data.Split, tokens: data.Tokens) -> EvalFn:
    placed = tools.place(tokens)
    name = tools.task.task.metric
    more = _MORE[name](tools, split, tokens) if name in _MORE else None
    parts = {"category": (tokens.label, tools.task.classes)}
    if split.groups is not None:
        parts["client"] = (split.groups, tools.task.groups)

    def judge(model: Global) -> Scores:
        output = tools.predict(model.base, placed, model.trained, model.gain)
        found: Scores = metrics.language_scores(output)
        for part, (codes, names) in parts.items():
            if len(names) > 1:
                found[f"perplexity_by_{part}"] = metrics.perplexity_by(codes, names, output)
        return found if more is None else found | {name: more(model)}

    return judge


def _choices(
    tools: EvalContext, split: data.Split, tokens: data.Tokens
) -> Callable[[Global], float]:
    rows, question = instruction_tokens.expand_choices(split)
    encoded = tools.encode(rows)
    question = question[encoded.index]
    placed = tools.place(encoded.tokens)

    def score(model: Global) -> float:
        output = tools.predict(model.base, placed, model.trained, model.gain)
        return metrics.choice_accuracy(question, encoded.tokens.label, output)

    return score


def _answers(
    metric: Callable[[list[str], list[str]], float], need: Callable[[], Any] = lambda: None
) -> Callable[[EvalContext, data.Split, data.Tokens], Callable[[Global], float]]:
    def prepare(
        tools: EvalContext, split: data.Split, tokens: data.Tokens
    ) -> Callable[[Global], float]:
        need()  # now: before anybody trains, or writes answers that cannot be scored
        answer = tools.answer(tokens)
        return lambda model: metric(answer(model), split.pairs or [])

    return prepare


_MORE: Mapping[str, Callable[..., Callable[[Global], float]]] = {
    "choice_accuracy": _choices,
    "rouge_l": _answers(metrics.rouge_l, need=metrics.need_rouge),
    "exact_match": _answers(metrics.exact_match),
}


def _start(label: np.ndarray, start: Callable[[], Scores]) -> Scores:
    return {f"start_{name}": value for name, value in start().items()}


TASK_TYPES: dict[str, TaskType] = {
    "classification": TaskType(
        lambda task: len(task.classes), _encode_texts, _judge_labels, _majority
    ),
    "regression": TaskType(lambda task: 1, _encode_texts, _judge_labels, lambda label, start: {}),
    "language": TaskType(
        lambda task: None, _encode_completions, _judge_language, _start, buckets=3
    ),
}
