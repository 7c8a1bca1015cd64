"""Metrics of language tasks: of the likelihood of completions, and of generated answers."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from fedjax_lora.core.errors import InputError

__all__ = [
    "choice_accuracy",
    "exact_match",
    "final_number",
    "language_scores",
    "make_rouge_l",
    "perplexity_by",
    "rouge_l",
]


def language_scores(sums: Float[np.ndarray, "E 3"]) -> dict[str, float]:
    """Compute ``loss``, ``perplexity`` and ``token_accuracy`` over the tokens of all completions.

    Args:
      sums: sums over the tokens of each completion: cross-entropy in nats, number of tokens that
        have the highest logit, and number of tokens.
    """
    loss, hits, count = sums.astype(np.float64).sum(axis=0)
    return {
        "loss": float(loss / count),
        "perplexity": float(np.exp(loss / count)),
        "token_accuracy": float(hits / count),
    }


def perplexity_by(
    code: Int[np.ndarray, " E"], names: Sequence[str], sums: Float[np.ndarray, "E 3"]
) -> dict[str, float]:
    """Perplexity of each group of completions by name; empty groups are left out.

    Args:
      code: group of each completion.
      names: names of the groups.
      sums: as for `language_scores`.
    """
    return {
        names[int(group)]: language_scores(sums[code == group])["perplexity"]
        for group in np.unique(code)
    }


def choice_accuracy(
    question: Int[np.ndarray, " E"], right: Int[np.ndarray, " E"], sums: Float[np.ndarray, "E 3"]
) -> float:
    """Share of questions whose likeliest choice is right.

    The likelihood of a choice includes that of its end-of-text token.

    Args:
      question: question that each choice belongs to.
      right: 1 for right choices, 0 for others.
      sums: sums of each choice, as for `language_scores`.
    """
    order = np.lexsort((sums[:, 0], question))  # by question, the likeliest choice first
    _, first = np.unique(question[order], return_index=True)
    return float(np.mean(right[order][first]))


def make_rouge_l() -> Callable[[Sequence[str], Sequence[str]], float]:
    """Return the function `rouge_l`, after importing the package that it needs.

    Call it before answers are generated, so that a missing package is reported early.

    Raises:
      InputError: the package rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError(
            "The metric 'rouge_l' needs the package rouge-score; install fedjax-lora[text]."
        ) from error
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def rouge_l(answers: Sequence[str], references: Sequence[str]) -> float:
        pairs = zip(answers, references, strict=True)
        measures = [scorer.score(right, answer)["rougeL"].fmeasure for answer, right in pairs]
        return float(np.mean(measures))

    return rouge_l


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> float:
    """ROUGE-L: mean F-measure of the longest common subsequence of stemmed words (Lin, 2004).

    Args:
      answers: generated texts.
      references: one reference per answer.

    Returns:
      A number between 0 and 1.

    Raises:
      InputError: the package rouge-score is not installed.
    """
    return make_rouge_l()(answers, references)


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Share of answers that equal their reference.

    If the reference has a final answer in the form of GSM8K (``#### 72``), only the number behind
    ``####`` is compared, without commas, by the rule of
    https://github.com/openai/grade-school-math. Otherwise the whole texts are compared, without
    regard to white space and case.

    Args:
      answers: generated texts.
      references: one reference per answer.
    """
    pairs = zip(answers, references, strict=True)
    return float(np.mean([_matches(answer, reference) for answer, reference in pairs]))


def _matches(answer: str, reference: str) -> bool:
    number = final_number(reference)
    if number is not None:
        return final_number(answer) == number
    return answer.casefold().split() == reference.casefold().split()


def final_number(text: str) -> str | None:
    """Extract the number behind the first ``#### ``, without commas; None if there is none.

    >>> final_number("40 + 2 = 42, so #### 1,042"), final_number("42")
    ('1042', None)
    """
    match = re.search(r"#### (-?[0-9.,]+)", text)
    return match and match[1].replace(",", "")
