"""Task metrics, in float64 NumPy."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int


def accuracy(label: Int[np.ndarray, "E"], output: Float[np.ndarray, "E C"]) -> float:
    """Share of examples whose highest logit is the label's."""
    return float(np.mean(output.argmax(axis=1) == label))


def f1(label: Int[np.ndarray, "E"], output: Float[np.ndarray, "E C"]) -> float:
    """F1 of class 1 (GLUE's second figure for MRPC and QQP); 0 if it is never right."""
    guess = output.argmax(axis=1)
    hits = np.sum((guess == 1) & (label == 1))
    wrong = np.sum((guess == 1) != (label == 1))
    return float(2 * hits / (2 * hits + wrong)) if hits else 0.0


def matthews(label: Int[np.ndarray, "E"], output: Float[np.ndarray, "E C"]) -> float:
    """Matthews correlation of the predicted classes; 0 if either side is constant."""
    guess = output.argmax(axis=1)
    classes = np.arange(output.shape[1])
    x = (guess[:, None] == classes).astype(np.float64)
    y = (label[:, None] == classes).astype(np.float64)
    covariance = lambda u, v: np.mean(np.sum((u - u.mean(0)) * (v - v.mean(0)), axis=1))  # noqa: E731
    spread = covariance(x, x) * covariance(y, y)
    return float(covariance(x, y) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(label: Float[np.ndarray, "E"], output: Float[np.ndarray, "E 1"]) -> float:
    """Pearson correlation of the single output with the label; 0 if one is constant or infinite."""
    x, y = output[:, 0].astype(np.float64), label.astype(np.float64)
    if not np.isfinite(x).all() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
}


def mean_loss(label: np.ndarray, output: np.ndarray, *, regression: bool = False) -> float:
    """Mean cross-entropy of the logits, or mean squared error."""
    output = output.astype(np.float64)
    if regression:
        return float(np.mean((output[:, 0] - label) ** 2))
    top = output.max(axis=1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(output - top).sum(axis=1))
    return float(np.mean(log_sum - output[np.arange(len(label)), label]))
