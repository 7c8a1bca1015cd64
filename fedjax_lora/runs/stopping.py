"""Rules that end a run before its last round, from the scores of its evaluated rounds.

A rule is a pure function of the scores so far, so a resumed run ends after the same round as one
that was not interrupted.
"""

from collections.abc import Callable, Mapping, Sequence

from fedjax_lora.core.errors import InputError

Scores = Sequence[float | None]
"""Scores of the evaluated rounds, higher is better; None where the model was not finite."""

StoppingRule = Callable[[Scores], bool]
"""Returns whether the run ends after the last of the rounds."""


def never(*, lower_is_better: bool) -> StoppingRule:
    """Play all rounds.

    Args:
      lower_is_better: whether the metric of the task is an error.
    """
    del lower_is_better
    return lambda scores: False


def target(*, lower_is_better: bool, score: float) -> StoppingRule:
    """End after the first evaluated round that reaches a score.

    Args:
      lower_is_better: whether the metric of the task is an error.
      score: value of the metric, such as an accuracy of 0.75 or a perplexity of 8.
    """
    least = -score if lower_is_better else score
    return lambda scores: bool(scores) and scores[-1] is not None and scores[-1] >= least


def patience(*, lower_is_better: bool, evaluations: int, improvement: float = 0.0) -> StoppingRule:
    """End when the best score is so many evaluations old.

    Args:
      lower_is_better: whether the metric of the task is an error.
      evaluations: evaluations in a row without a better score after which the run ends.
      improvement: a score counts as better if it exceeds the best by more than this.

    Raises:
      InputError: a number of evaluations below 1, or a negative improvement.
    """
    del lower_is_better  # scores are ordered already
    if evaluations < 1 or not improvement >= 0:
        raise InputError(
            "Stopping rule 'patience' needs at least 1 evaluation and an improvement of at least "
            f"0, got {evaluations} and {improvement}."
        )

    def rule(scores: Scores) -> bool:
        best, waited = None, 0
        for score in scores:
            is_better = score is not None and (best is None or score > best + improvement)
            best, waited = (score, 0) if is_better else (best, waited + 1)
        return waited >= evaluations

    return rule


STOPPING_RULES: Mapping[str, Callable[..., StoppingRule]] = {
    "never": never,
    "target": target,
    "patience": patience,
}
"""Factories of stopping rules by name."""
