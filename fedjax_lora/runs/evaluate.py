"""How good models are: the global one, cut to lower ranks, and each client's."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lora import data
from fedjax_lora.data import instruction_tokens
from fedjax_lora.data.batching import length_buckets
from fedjax_lora.evaluation import metrics
from fedjax_lora.evaluation.generation.answers import make_answer_fn
from fedjax_lora.evaluation.task_types import TASK_TYPES, EvalContext, EvalFn, Scores
from fedjax_lora.interop import TrainedModel, tokenizer_of
from fedjax_lora.runs import compilation
from fedjax_lora.runs import outputs as run_outputs
from fedjax_lora.runs.build import Experiment
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.compilation import InputSpec


class Evaluator(NamedTuple):
    """How models are assessed on examples.

    Attributes:
      predict: what has to be computed of a model, once for all clients that have the same.
      score: a model's scores, from that and the share of each class (a language task's categories)
        among a client's own examples, or None.
      names: the scores that tables show, the task's metric first.
    """

    predict: Callable[[TrainedModel], Any]
    score: Callable[[Any, np.ndarray | None], Scores]
    names: tuple[str, ...]

    def of(self, fitted: TrainedModel) -> Scores:
        """The scores of a model that is no client's."""
        return self.score(self.predict(fitted), None)


def by_labels(
    label: np.ndarray, outputs: Callable[[TrainedModel], np.ndarray], metric: str
) -> Evaluator:
    """By the logits ``[E, C]`` of a model's `outputs`, see `scores`."""
    score = lambda output, share: scores(label, output, metric, share=share)  # noqa: E731
    return Evaluator(outputs, score, (metric, "loss", "own_accuracy"))


def by_text(judge: EvalFn, categories: Sequence[str], metric: str) -> Evaluator:
    """By what a language model makes of examples, see `fedjax_lora.evaluation.task_types`."""

    def predict(fitted: TrainedModel) -> Scores:
        return judge(fitted.adapted_params)

    def score(found: Scores, share: np.ndarray | None) -> Scores:
        each = found.get("perplexity_by_category")
        if share is None or each is None:
            return found
        return found | {"own_perplexity": local_perplexity(each, categories, share)}

    return Evaluator(predict, score, tuple(dict.fromkeys((metric, "perplexity", "own_perplexity"))))


def scores(
    label: np.ndarray, output: np.ndarray, metric: str, *, share: np.ndarray | None = None
) -> dict[str, float]:
    """The task's metric and the loss.

    Args:
      label: ``[E]``.
      output: logits, ``[E, C]``.
      metric: a name in `fedjax_lora.evaluation.metrics.METRICS`.
      share: of each class among a client's own examples; adds ``local_accuracy``, see
        `local_accuracy`.
    """
    found = {
        metric: metrics.METRICS[metric](label, output),
        "loss": metrics.mean_loss(label, output, regression=metric == "pearson"),
    }
    if share is not None:
        found["own_accuracy"] = local_accuracy(label, output, share)
    return found


def local_accuracy(label: np.ndarray, output: np.ndarray, share: np.ndarray) -> float:
    """Accuracy on test examples mixed as a client's own are: ``sum_c share_c accuracy_c``.

    What a personal model is for: with clients of few classes, accuracy on all classes says little.
    Classes without test examples are left out.

    Args:
      label: ``int[E]``.
      output: logits, ``[E, C]``.
      share: of each class among the client's training examples, ``[C]``.
    """
    right = output.argmax(axis=1) == label
    count = np.bincount(label, minlength=len(share))
    each = np.bincount(label, weights=right, minlength=len(share)) / np.maximum(count, 1)
    share = np.where(count > 0, share, 0.0)
    return float(np.sum(share * each) / np.sum(share)) if share.sum() else 0.0


def local_perplexity(
    each: Mapping[str, float], categories: Sequence[str], share: np.ndarray
) -> float | None:
    """Perplexity on test examples mixed as a client's own are: ``exp(sum_c share_c loss_c)``.

    Categories without test examples are left out; None if there is no other.

    >>> round(local_perplexity({"a": 2.0, "b": 8.0}, ["a", "b"], np.array([0.5, 0.5])), 6)
    4.0

    Args:
      each: perplexity by category.
      categories: their names, in the order of `share`.
      share: of each category among the client's training examples.
    """
    known = [
        (s, math.log(each[name])) for s, name in zip(share, categories, strict=True) if name in each
    ]
    total = sum(s for s, _ in known)
    return math.exp(sum(s * loss for s, loss in known) / total) if total else None


def of_ranks(fitted: TrainedModel, assess: Evaluator, ranks: Iterable[int]) -> list[dict[str, Any]]:
    """The model cut to lower ranks, in ascending order (see `TrainedModel.truncate`).

    Args:
      fitted: the model.
      assess: how it is assessed.
      ranks: how many components; each is computed once.
    """
    return [{"rank": r, **assess.of(fitted.truncate(r))} for r in sorted(set(ranks))]


def of_clients(
    experiment: Experiment,
    progress: Progress,
    assess: Evaluator,
    *,
    own_mix: bool,
    on_client: Callable[[int], None] = lambda client: None,
) -> list[dict[str, Any]]:
    """Each client's own model (see `fedjax_lora.runs.outputs.of_client`) on the same examples.

    Clients with the same model are computed once.

    Args:
      experiment: the run.
      progress: what it has led to.
      assess: how they are assessed.
      own_mix: whether labels are the run's classes, so that a client's own mix can be told.
      on_client: called with each client that is done.
    """
    members, classes = experiment.federation.members, experiment.assets.task.classes
    share = None
    if own_mix and classes:
        parts = data.Partition(tuple(members), None)
        count = data.class_counts(parts, experiment.assets.task.train.labels, len(classes))
        share = count / count.sum(axis=1, keepdims=True)
    known: dict[str, Any] = {}
    found = []
    for client, rank in enumerate(progress.rank.tolist()):
        fitted = run_outputs.of_client(experiment, progress, client)
        which = _digest(fitted)
        if which not in known:
            known[which] = assess.predict(fitted)
        mine = None if share is None else share[client]
        own = {"client": client, "rank": rank, "examples": len(members[client])}
        found.append(own | assess.score(known[which], mine))
        on_client(client)
    return found


def _digest(fitted: TrainedModel) -> str:
    """Of what tells the models of one run's clients apart."""
    total = hashlib.sha256()
    product = {
        path: (pair.a * fitted.gain[path][..., None, :], pair.b)
        for path, pair in fitted.adapter.items()
    }
    silent = not any(np.any(b) for _, b in product.values())
    for leaf in jax.tree.leaves((fitted.head, () if silent else product)):
        total.update(np.ascontiguousarray(leaf))
    return total.hexdigest()


def spread(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Mean, worst, quartiles and best of one number over the clients that have it.

    >>> spread([{"x": 1.0}, {"x": 2.0}, {"x": 6.0}, {"x": None}], "x")["mean"]
    3.0
    """
    values = np.array([row[name] for row in rows if row[name] is not None])
    names = ("lowest", "quarter", "median", "three_quarters", "highest")
    quartiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {"mean": float(values.mean()), **dict(zip(names, quartiles, strict=True))}


_KIND = TASK_TYPES["language"]


def assess(
    trained: TrainedModel, loaded: data.TaskData, *, batch: int, cache_dir: str | None = None
) -> tuple[Evaluator, int]:
    """How models on this base are assessed on a language task's test examples, and their number.

    Prompts are as in the training, unless the task says how they are.

    Args:
      trained: the model.
      loaded: the task.
      batch: examples computed, or prompts answered, at once.
      cache_dir: folder of tokens.

    Raises:
      InputError: prompts that leave no room for an answer, or no example that can be used.
    """
    model, task = trained.pretrained, _prompted(loaded.task, trained.metadata.prompt_format)
    longest = min(trained.metadata.max_length, model.config.max_tokens)

    def encode(split: data.Split) -> instruction_tokens.Encoded:
        return _KIND.encode(task, split, tokenizer_of(trained), longest, cache_dir)

    made = encode(loaded.test)
    lengths = length_buckets(
        made.tokens.length, longest=made.tokens.ids.shape[1], most=_KIND.num_buckets
    )
    reading = InputSpec(
        module=model.module, lengths=lengths, kind="language", dropout=False, lora_dropout=0.0
    )
    tools = EvalContext(
        task=loaded._replace(task=task),
        predict=compilation.build_predict(reading, batch, None),
        place=jax.device_put,
        encode=encode,
        answer=functools.partial(
            make_answer_fn, model, new_tokens=task.prompting.answer_tokens, batch=batch
        ),
    )
    judge = _KIND.make_eval_fn(tools, made.split, made.tokens)
    return by_text(judge, loaded.classes, task.metric), len(made.index)


def _prompted(task: data.Task, trained_with: str) -> data.Task:
    """The task with the prompts of the training, where it leaves them open."""
    if task.prompting.format != "auto":
        return task
    return dataclasses.replace(task, prompting=task.prompting._replace(format=trained_with))
