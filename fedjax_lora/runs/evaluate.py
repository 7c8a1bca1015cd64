"""Evaluate trained models: the global one, cut to lower ranks, and that of each client."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lora import data
from fedjax_lora.core.json_values import History
from fedjax_lora.data import instruction_tokens
from fedjax_lora.data.batch_shapes import length_buckets
from fedjax_lora.evaluation import metrics
from fedjax_lora.evaluation.generation.answers import make_answer_fn
from fedjax_lora.evaluation.task_types import TASK_TYPES, EvalContext, EvalFn, Scores
from fedjax_lora.interop import ModelMetadata, TrainedModel, tokenizer_of
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.compilation import InputSpec, build_predict
from fedjax_lora.runs.outputs import client_model
from fedjax_lora.runs.prepared import Run

_LANGUAGE = TASK_TYPES["language"]


class Evaluator(NamedTuple):
    """Evaluation of models on a set of examples.

    Attributes:
      predict: predictions of a model, computed once for all clients with the same model.
      score: scores from the predictions and the share of each class (of each category, in a
        language task) among a client's own examples, or None.
      metrics: names of the scores that tables show, the task's metric first.
    """

    predict: Callable[[TrainedModel], Any]
    score: Callable[[Any, np.ndarray | None], Scores]
    metrics: tuple[str, ...]

    def evaluate(self, model: TrainedModel) -> Scores:
        """Return the scores of a model that belongs to no client."""
        return self.score(self.predict(model), None)


def label_evaluator(
    label: np.ndarray, logits: Callable[[TrainedModel], np.ndarray], metric: str
) -> Evaluator:
    """Build the evaluation of classifiers and regression models.

    Args:
      label: labels of the examples, ``[E]``.
      logits: the logits of a model, ``[E, C]``.
      metric: metric of the task.
    """
    score = lambda output, share: scores(label, output, metric, share=share)  # noqa: E731
    return Evaluator(logits, score, (metric, "loss", "local_accuracy"))


def text_evaluator(eval_fn: EvalFn, categories: Sequence[str], metric: str) -> Evaluator:
    """Build the evaluation of language models.

    Args:
      eval_fn: scores of a model, see `fedjax_lora.evaluation.task_types`.
      categories: names of the task's categories.
      metric: metric of the task.
    """

    def predict(model: TrainedModel) -> Scores:
        return eval_fn(model.adapted_params)

    def score(model_scores: Scores, share: np.ndarray | None) -> Scores:
        by_category = model_scores.get("perplexity_by_category")
        if share is None or by_category is None:
            return model_scores
        local = local_perplexity(by_category, categories, share)
        return model_scores | {"local_perplexity": local}

    names = dict.fromkeys((metric, "perplexity", "local_perplexity"))
    return Evaluator(predict, score, tuple(names))


def scores(
    label: np.ndarray, output: np.ndarray, metric: str, *, share: np.ndarray | None = None
) -> dict[str, float]:
    """Compute the task's metric and the loss.

    Args:
      label: labels, ``[E]``.
      output: logits, ``[E, C]``.
      metric: a name in `fedjax_lora.evaluation.metrics.METRICS`.
      share: share of each class among a client's own examples; adds ``local_accuracy``, see
        `local_accuracy`.
    """
    values = {
        **{
            name: metrics.METRICS[name](label, output)
            for name in metrics.recorded_names(metric, output.shape[1])
        },
        "loss": metrics.mean_loss(label, output, regression=metric in metrics.CORRELATIONS),
    }
    if share is not None:
        values["local_accuracy"] = local_accuracy(label, output, share)
    return values


def local_accuracy(label: np.ndarray, output: np.ndarray, share: np.ndarray) -> float:
    """Compute the accuracy on test examples mixed as a client's own: ``sum_c share_c accuracy_c``.

    It is what a personal model is for: with clients of few classes, accuracy on all classes says
    little. Classes without test examples are left out.

    Args:
      label: labels, ``int[E]``.
      output: logits, ``[E, C]``.
      share: share of each class among the client's training examples, ``[C]``.
    """
    correct = output.argmax(axis=1) == label
    count = np.bincount(label, minlength=len(share))
    accuracy = np.bincount(label, weights=correct, minlength=len(share)) / np.maximum(count, 1)
    share = np.where(count > 0, share, 0.0)
    return float(np.sum(share * accuracy) / np.sum(share)) if share.sum() else 0.0


def local_perplexity(
    by_category: Mapping[str, float], categories: Sequence[str], share: np.ndarray
) -> float | None:
    """Compute the perplexity on test examples mixed as a client's own.

    It is ``exp(sum_c share_c loss_c)``. Categories without test examples are left out; None if
    there is no other.

    >>> local = local_perplexity({"a": 2.0, "b": 8.0}, ["a", "b"], np.array([0.5, 0.5]))
    >>> round(local, 6)
    4.0

    Args:
      by_category: perplexity by category.
      categories: names of the categories, in the order of `share`.
      share: share of each category among the client's training examples.
    """
    losses = [
        (weight, math.log(by_category[name]))
        for weight, name in zip(share, categories, strict=True)
        if name in by_category
    ]
    total = sum(weight for weight, _ in losses)
    return math.exp(sum(weight * loss for weight, loss in losses) / total) if total else None


def evaluate_ranks(model: TrainedModel, evaluator: Evaluator, ranks: Iterable[int]) -> History:
    """Evaluate a model cut to lower ranks, in ascending order (see `TrainedModel.truncate`).

    Args:
      model: the model.
      evaluator: the evaluation.
      ranks: numbers of components; each is computed once.
    """
    return [{"rank": r, **evaluator.evaluate(model.truncate(r))} for r in sorted(set(ranks))]


def evaluate_clients(
    run: Run,
    progress: Progress,
    evaluator: Evaluator,
    *,
    local_scores: bool,
    on_client: Callable[[int], object] = lambda client: None,
) -> History:
    """Evaluate each client's own model on the same examples.

    Clients with the same model (see `fedjax_lora.runs.outputs.client_model`) are computed once.

    Args:
      run: the run.
      progress: its progress.
      evaluator: the evaluation.
      local_scores: add scores on the class mix of each client; only if the labels are the run's
        classes.
      on_client: called with each client that is done.
    """
    shares = class_shares(run) if local_scores else None
    predictions: dict[str, Any] = {}
    rows = []
    for client, rank in enumerate(progress.rank.tolist()):
        model = client_model(run, progress, client)
        digest = _digest(model)
        if digest not in predictions:
            predictions[digest] = evaluator.predict(model)
        examples = len(run.federation.members[client])
        share = None if shares is None else shares[client]
        row = {"client": client, "rank": rank, "examples": examples}
        rows.append(row | evaluator.score(predictions[digest], share))
        on_client(client)
    return rows


def class_shares(run: Run) -> np.ndarray | None:
    """Compute the share of each class among each client's training examples, ``[N, C]``."""
    task = run.inputs.assets.task
    if not task.classes:
        return None
    partition = data.Partition(tuple(run.federation.members), None)
    count = data.class_counts(partition, task.train.labels, len(task.classes))
    return count / count.sum(axis=1, keepdims=True)


def _digest(model: TrainedModel) -> str:
    """Digest everything in which the models of one run's clients can differ."""
    digest = hashlib.sha256()
    product = {
        path: (pair.a * model.gain[path][..., None, :], pair.b)
        for path, pair in model.adapter.items()
    }
    is_zero = not any(np.any(b) for _, b in product.values())
    for leaf in jax.tree.leaves((model.head, () if is_zero else product)):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def spread(rows: History, name: str) -> dict[str, float]:
    """Compute mean, lowest, quartiles and highest of a number over the clients that have it.

    >>> spread([{"x": 1.0}, {"x": 2.0}, {"x": 6.0}, {"x": None}], "x")["mean"]
    3.0
    """
    values = np.array([row[name] for row in rows if row[name] is not None])
    names = ("lowest", "quarter", "median", "three_quarters", "highest")
    quartiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {"mean": float(values.mean()), **dict(zip(names, quartiles, strict=True))}


def language_evaluator(
    model: TrainedModel, task_data: data.TaskData, *, batch: int, cache_dir: str | None = None
) -> tuple[Evaluator, int]:
    """Build the evaluation of models on the test examples of a language task.

    Prompts are as in the training, unless the task has a format of its own.

    Args:
      model: any model on the base.
      task_data: the task.
      batch: examples computed, or prompts answered, at once.
      cache_dir: folder of cached tokens.

    Returns:
      The evaluator and the number of examples.

    Raises:
      InputError: prompts that leave no room for an answer, or no example that can be used.
    """
    pretrained = model.pretrained
    task = _with_prompts_of(task_data.task, model.metadata)
    max_length = min(model.metadata.max_length, pretrained.config.max_tokens)

    def encode(split: data.Split) -> instruction_tokens.Encoded:
        return _LANGUAGE.encode(task, split, tokenizer_of(model), max_length, cache_dir)

    test = encode(task_data.test)
    lengths = length_buckets(
        test.tokens.length, longest=test.tokens.ids.shape[1], most=_LANGUAGE.num_buckets
    )
    inputs = InputSpec(
        module=pretrained.module, lengths=lengths, type="language", dropout=False, lora_dropout=0.0
    )
    context = EvalContext(
        task=task_data._replace(task=task),
        predict=build_predict(inputs, batch, None),
        place=jax.device_put,
        encode=encode,
        answer=functools.partial(make_answer_fn, pretrained, prompting=task.prompting, batch=batch),
    )
    eval_fn = _LANGUAGE.make_eval_fn(context, test.split, test.tokens)
    return text_evaluator(eval_fn, task_data.classes, task.metric), len(test.index)


def _with_prompts_of(task: data.Task, trained: ModelMetadata) -> data.Task:
    """Return the task with the date and, unless it has its own, the format of the training."""
    prompting = task.prompting._replace(date=trained.chat_date)
    if prompting.format == "auto":
        prompting = prompting._replace(format=trained.prompt_format)
    return dataclasses.replace(task, prompting=prompting)
