"""When a run evaluates on what: a part of the test data between rounds, all of it at the end."""

import dataclasses
from collections.abc import Callable

import numpy as np

from fedjax_lora.data import Tokens
from fedjax_lora.evaluation.evaluator import LabelledSplit
from fedjax_lora.evaluation.task_types import Scores
from fedjax_lora.federated import FederatedState

PART = "on_part"
"""Name of the scores on the part in the record of the round that is evaluated on all."""

Evaluate = Callable[[FederatedState], Scores]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluations:
    """The evaluations of a run.

    Attributes:
      test: scores on all test examples.
      others: scores on the other splits, whose names have a prefix; these are always evaluated.
      part: scores on a fixed part of the test examples; None evaluates on all after every round.
      examples: how many test examples there are, and how many of them are in the part.
    """

    test: Evaluate
    others: Evaluate
    part: Evaluate | None
    examples: tuple[int, int]

    def whole(self, state: FederatedState) -> Scores:
        """Return the scores on all splits."""
        return self.test(state) | self.others(state)

    def after_round(self, state: FederatedState, *, last: bool) -> Scores:
        """Return the scores of a round, as its record has them.

        The last round has the scores on the part as well, by which models are compared.
        """
        if self.part is None:
            return self.whole(state)
        scores = self.part(state)
        if last:
            return self.complete(scores, state)
        return scores | self.others(state) | {"eval_examples": self.examples[1]}

    def complete(self, record: Scores, state: FederatedState) -> Scores:
        """Return the scores of a last round whose record has those on the part already."""
        total, count = self.examples
        if self.part is None or record.get("eval_examples") == total:
            return {}
        test = self.test(state)
        part = {name: record[name] for name in test if name in record} | {"eval_examples": count}
        return test | self.others(state) | {"eval_examples": total, PART: part}


def part_of(split: LabelledSplit, count: int, seed: int) -> LabelledSplit:
    """Return a part of a split, drawn with the seed, in the order of the split."""
    rows = np.random.default_rng([seed, 9]).permutation(len(split.tokens.label))[:count]
    rows = np.sort(rows)
    tokens = Tokens(*(column[rows] for column in split.tokens))
    return LabelledSplit(split.prefix, split.split.take(rows), tokens)
