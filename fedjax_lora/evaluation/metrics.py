"""Task metrics, in float64 NumPy."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fedjax_lora.core.errors import InputError


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


def language_scores(sums: Float[np.ndarray, "E 3"]) -> dict[str, float]:
    """``loss``, ``perplexity`` and ``token_accuracy`` over all tokens of all completions.

    Args:
      sums: of each completion's tokens: cross-entropy in nats, how many are the likeliest, and how
        many there are.
    """
    loss, hits, count = sums.astype(np.float64).sum(axis=0)
    return {
        "loss": float(loss / count),
        "perplexity": float(np.exp(loss / count)),
        "token_accuracy": float(hits / count),
    }


def perplexity_by(
    code: Int[np.ndarray, "E"], names: Sequence[str], sums: Float[np.ndarray, "E 3"]
) -> dict[str, float]:
    """Perplexity of each group of completions, by name; groups without any are left out.

    Args:
      code: the group of each example.
      names: of the groups.
      sums: as for `language_scores`.
    """
    return {
        names[int(group)]: language_scores(sums[code == group])["perplexity"]
        for group in np.unique(code)
    }


def choice_accuracy(
    question: Int[np.ndarray, "E"], right: Int[np.ndarray, "E"], sums: Float[np.ndarray, "E 3"]
) -> float:
    """Share of questions whose likeliest choice is right; its end counts as a part of a choice.

    Args:
      question: which question each choice belongs to.
      right: 1 for right choices.
      sums: as for `language_scores`.
    """
    order = np.lexsort((sums[:, 0], question))  # by question, the likeliest first
    _, first = np.unique(question[order], return_index=True)
    return float(np.mean(right[order][first]))


def need_rouge() -> Any:
    """The package that `rouge_l` needs; to be asked for before there is anything to score.

    Raises:
      InputError: the package rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError(
            "The metric 'rouge_l' needs the package rouge-score; install fedjax-lora[text]."
        ) from error
    return RougeScorer


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> float:
    """Mean F-measure of the longest common subsequence of stemmed words (Lin, 2004), 0 to 1.

    Raises:
      InputError: the package rouge-score is not installed.
    """
    score = need_rouge()(["rougeL"], use_stemmer=True).score
    pairs = zip(answers, references, strict=True)
    return float(np.mean([score(right, own)["rougeL"].fmeasure for own, right in pairs]))


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Share of answers equal to the reference, in the form that the reference has.

    A reference with GSM8K's final answer (``#### 72``) asks for the same number behind ``####``, by
    the rule of https://github.com/openai/grade-school-math; commas in numbers do not count. Any
    other is compared as a whole; white space and case do not count.
    """
    pairs = zip(answers, references, strict=True)
    return float(np.mean([_same(answer, right) for answer, right in pairs]))


def _same(answer: str, reference: str) -> bool:
    wanted = final_number(reference)
    if wanted is not None:
        return final_number(answer) == wanted
    return answer.casefold().split() == reference.casefold().split()


def final_number(text: str) -> str | None:
    """The number behind the first ``#### ``, without commas; None without one.

    >>> final_number("40 + 2 = 42, so #### 1,042"), final_number("42")
    ('1042', None)
    """
    found = re.search(r"#### (-?[0-9.,]+)", text)
    return found and found[1].replace(",", "")
