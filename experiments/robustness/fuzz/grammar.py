"""Drawing of options: every value of every option occurs, beside few others."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.robustness.fuzz.case import Case

SHARE = 0.12
"""Probability that an option does not have its usual value in a case that is about another one."""

Choices = Mapping[str, Sequence[Any]]
"""The values of each option; the first one is the usual value."""


def focuses(choices: Choices) -> list[tuple[str, Any]]:
    """Each unusual value of each option, in an order that alternates between the options."""
    columns = [[(name, value) for value in values[1:]] for name, values in choices.items()]
    longest = max(map(len, columns))
    return [column[row] for row in range(longest) for column in columns if row < len(column)]


def draw(choices: Choices, rng: np.random.Generator) -> dict[str, Any]:
    """Draw unusual values of some of the options.

    Args:
      choices: the values of each option.
      rng: random numbers.
    """
    return {
        name: values[int(rng.integers(1, len(values)))]
        for name, values in choices.items()
        if rng.random() < SHARE
    }


def cases(part: str, choices: Choices, *, seed: int) -> Iterator[Case]:
    """Endlessly many cases: each unusual value of each option in turn, beside few others.

    Args:
      part: name of the part of the fuzz.
      choices: the values of each option.
      seed: of the part; with its number a case is drawn again.
    """
    turns = focuses(choices)
    for number in itertools.count():
        rng = np.random.default_rng([number, seed])
        about, value = turns[number % len(turns)]
        yield Case(part, number, {"about": about, **draw(choices, rng), about: value})


def simplified(case: Case) -> Case:
    """The case with only the option that it is about, for where options exclude each other."""
    kept = ("family", "task", "format", "library", "about", case.options["about"])
    return case._replace(options={k: x for k, x in case.options.items() if k in kept})
