"""How good models are: the global one, cut to lower ranks, and each client's."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_lora import data, handover, metrics
from fedjax_lora.adapters import Template
from fedjax_lora.checkpoints import Progress
from fedjax_lora.exchange import Fitted
from fedjax_lora.experiment import Experiment

Outputs = Callable[[Fitted], np.ndarray]
"""The logits of a model for the texts it is assessed on, ``[E, C]``."""


def scores(
    label: np.ndarray, output: np.ndarray, metric: str, *, share: np.ndarray | None = None
) -> dict[str, float]:
    """The task's metric and the loss.

    Args:
      label: ``[E]``.
      output: logits, ``[E, C]``.
      metric: a name in `fedjax_lora.metrics.METRICS`.
      share: of each class among a client's own examples; adds ``own_accuracy``, see `own_accuracy`.
    """
    found = {
        metric: metrics.METRICS[metric](label, output),
        "loss": metrics.mean_loss(label, output, regression=metric == "pearson"),
    }
    if share is not None:
        found["own_accuracy"] = own_accuracy(label, output, share)
    return found


def own_accuracy(label: np.ndarray, output: np.ndarray, share: np.ndarray) -> float:
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


def of_ranks(
    fitted: Fitted,
    outputs: Outputs,
    label: np.ndarray,
    metric: str,
    ranks: Mapping[int, float],
) -> list[dict[str, Any]]:
    """The model cut to lower ranks.

    Args:
      fitted: the model.
      outputs: see `Outputs`.
      label: of the texts.
      metric: of the task.
      ranks: and what the scale is multiplied by there.
    """
    return [
        {"rank": rank, **scores(label, outputs(fitted.truncated(rank, factor)), metric)}
        for rank, factor in sorted(ranks.items())
    ]


def scale_factors(template: Template, ranks: Sequence[int]) -> dict[int, float]:
    """What the global adapter's scale becomes at lower ranks, as a share of what it is."""
    return {int(r): float(template.scale(int(r))) / template.server_scale for r in set(ranks)}


def of_clients(
    experiment: Experiment,
    progress: Progress,
    outputs: Outputs,
    label: np.ndarray,
    metric: str,
    *,
    own_mix: bool,
    on_client: Callable[[int], None] = lambda client: None,
) -> list[dict[str, Any]]:
    """Each client's own model (see `fedjax_lora.handover.of_client`) on the same texts.

    Clients with the same model are computed once.

    Args:
      experiment: the run.
      progress: what it has led to.
      outputs: see `Outputs`.
      label: of the texts.
      metric: of the task.
      own_mix: whether labels are the run's classes, so that `own_accuracy` can be told.
      on_client: called with each client that is done.
    """
    members, classes = experiment.federation.members, experiment.assets.task.classes
    share = None
    if own_mix and classes:
        parts = data.Partition(tuple(members), None)
        count = data.class_counts(parts, experiment.assets.task.train.labels, len(classes))
        share = count / count.sum(axis=1, keepdims=True)
    known: dict[str, np.ndarray] = {}
    found = []
    for client, rank in enumerate(progress.rank.tolist()):
        fitted = handover.of_client(experiment, progress, client)
        which = _digest(fitted)
        if which not in known:
            known[which] = outputs(fitted)
        mine = None if share is None else share[client]
        own = {"client": client, "rank": rank, "examples": len(members[client])}
        found.append(own | scores(label, known[which], metric, share=mine))
        on_client(client)
    return found


def _digest(fitted: Fitted) -> str:
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
    """Mean, worst, quartiles and best of one number over clients.

    >>> spread([{"x": 1.0}, {"x": 2.0}, {"x": 6.0}], "x")["mean"]
    3.0
    """
    values = np.array([row[name] for row in rows])
    names = ("lowest", "quarter", "median", "three_quarters", "highest")
    quartiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {"mean": float(values.mean()), **dict(zip(names, quartiles, strict=True))}
