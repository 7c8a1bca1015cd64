"""Metrics of classes and scores, computed in float64 with NumPy."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

__all__ = [
    "METRICS",
    "accuracy",
    "by_group",
    "f1",
    "macro_f1",
    "matthews",
    "mean_loss",
    "micro_f1",
    "pearson",
    "recorded_names",
    "spearman",
    "spread_over_clients",
]


def accuracy(label: Int[np.ndarray, " E"], output: Float[np.ndarray, "E C"]) -> float:
    """Share of examples whose highest logit is that of the label.

    Args:
      label: class of each example.
      output: logits.
    """
    return float(np.mean(output.argmax(axis=1) == label))


def f1(label: Int[np.ndarray, " E"], output: Float[np.ndarray, "E C"]) -> float:
    """F1 score: of two classes that of the second, of three or more `macro_f1`.

    The second class is the positive one in GLUE, whose second metric of MRPC and QQP this is. Which
    class it is follows from the order of the class names.

    Args:
      label: class of each example.
      output: logits.
    """
    if output.shape[1] > 2:
        return macro_f1(label, output)
    return _f1_of(1, label, output.argmax(axis=1))


def macro_f1(label: Int[np.ndarray, " E"], output: Float[np.ndarray, "E C"]) -> float:
    """Unweighted mean of the F1 scores of the classes that occur or are predicted.

    Args:
      label: class of each example.
      output: logits.
    """
    predicted = output.argmax(axis=1)
    present = np.union1d(label, predicted)
    return float(np.mean([_f1_of(int(c), label, predicted) for c in present]))


def micro_f1(label: Int[np.ndarray, " E"], output: Float[np.ndarray, "E C"]) -> float:
    """F1 score over the decisions for all classes together.

    With one class for each example every false positive is also a false negative, so this equals
    `accuracy`.

    Args:
      label: class of each example.
      output: logits.
    """
    return accuracy(label, output)


def _f1_of(positive: int, label: np.ndarray, predicted: np.ndarray) -> float:
    """F1 score of one class; 0 without a true positive."""
    hits = np.sum((predicted == positive) & (label == positive))
    errors = np.sum((predicted == positive) != (label == positive))
    return float(2 * hits / (2 * hits + errors)) if hits else 0.0


def matthews(label: Int[np.ndarray, " E"], output: Float[np.ndarray, "E C"]) -> float:
    """Matthews correlation of predicted and true classes; 0 if either is constant.

    Args:
      label: class of each example.
      output: logits.
    """
    predicted = output.argmax(axis=1)
    classes = np.arange(output.shape[1])
    x = (predicted[:, None] == classes).astype(np.float64)
    y = (label[:, None] == classes).astype(np.float64)
    covariance = lambda u, v: np.mean(np.sum((u - u.mean(0)) * (v - v.mean(0)), axis=1))  # noqa: E731
    spread = covariance(x, x) * covariance(y, y)
    return float(covariance(x, y) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(label: Float[np.ndarray, " E"], output: Float[np.ndarray, "E 1"]) -> float:
    """Pearson correlation of the single output with the label.

    Args:
      label: score of each example.
      output: predicted scores.

    Returns:
      The correlation; 0 if either is constant or an output is not finite.
    """
    x, y = output[:, 0].astype(np.float64), label.astype(np.float64)
    if not np.isfinite(x).all() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def spearman(label: Float[np.ndarray, " E"], output: Float[np.ndarray, "E 1"]) -> float:
    """Spearman correlation of the single output with the label: Pearson's of their ranks.

    Args:
      label: score of each example.
      output: predicted scores.

    Returns:
      The correlation, where equal values have the mean of their ranks; 0 as for `pearson`.
    """
    if not np.isfinite(output).all():
        return 0.0
    return pearson(_ranks(label), _ranks(output[:, 0])[:, None])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, `float64[E]`; that of equal values is the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "micro_f1": micro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""Metrics ``(label, output) -> float`` of classification and regression tasks, by name."""


def recorded_names(metric: str, classes: int) -> tuple[str, ...]:
    """Names under which the metric of a task is recorded.

    F1 of three or more classes is also recorded as what it is, and either correlation of a
    regression task with the other, since STS-B's results are both.

    >>> recorded_names("f1", 2), recorded_names("f1", 3), recorded_names("pearson", 1)
    (('f1',), ('f1', 'macro_f1'), ('pearson', 'spearman'))
    """
    if metric in CORRELATIONS:
        return (metric, *(name for name in CORRELATIONS if name != metric))
    return (metric, "macro_f1") if metric == "f1" and classes > 2 else (metric,)


CORRELATIONS = ("pearson", "spearman")
"""Metrics of regression tasks."""


def mean_loss(label: np.ndarray, output: np.ndarray, *, regression: bool = False) -> float:
    """Mean cross-entropy in nats, or mean squared error of a regression task.

    Args:
      label: ``[E]``, classes or scores.
      output: ``[E, C]``, logits or, in the only column, predicted scores.
      regression: whether labels are scores.
    """
    output = output.astype(np.float64)
    if regression:
        return float(np.mean((output[:, 0] - label) ** 2))
    top = output.max(axis=1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(output - top).sum(axis=1))
    return float(np.mean(log_sum - output[np.arange(len(label)), label]))


def by_group(
    score: Callable[[np.ndarray, np.ndarray], float],
    code: Int[np.ndarray, " E"],
    names: Sequence[str],
    label: np.ndarray,
    output: np.ndarray,
) -> dict[str, float]:
    """Compute a score of each group of examples by name; empty groups are left out.

    Args:
      score: ``(label, output) -> float``.
      code: group of each example.
      names: names of the groups.
      label: ``[E]``, classes or scores.
      output: ``[E, C]``, logits or predicted scores.
    """
    return {
        names[int(group)]: score(label[code == group], output[code == group])
        for group in np.unique(code)
    }


def spread_over_clients(scores: Sequence[float], *, lower_is_better: bool) -> dict[str, float]:
    """Compute mean, standard deviation, lowest and highest of the clients' scores.

    >>> spread_over_clients([0.5, 1.0], lower_is_better=False)["worst_tenth"]
    0.5

    Args:
      scores: one for each client, at least one.
      lower_is_better: whether the worst scores are the highest.

    Returns:
      These numbers, and as ``worst_tenth`` the mean over the tenth of the clients (rounded up) with
      the worst scores.
    """
    ordered = np.sort(np.asarray(scores, np.float64))
    if lower_is_better:
        ordered = ordered[::-1]
    worst = ordered[: -(-len(ordered) // 10)]
    return {
        "mean": float(ordered.mean()),
        "std": float(ordered.std()),
        "worst_tenth": float(worst.mean()),
        "lowest": float(ordered.min()),
        "highest": float(ordered.max()),
    }
