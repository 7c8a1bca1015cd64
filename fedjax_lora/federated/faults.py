"""Faults: drawn clients that drop out or fall behind, decided on the host, as data.

A fault is a function from (a generator, the local steps a client has before it) to the steps it
takes; 0 means that it does not answer. The generator belongs to (seed, round, client), so that a
resumed run has the faults of the first one. An attack (`fedjax_lora.federated.attacks`) is a fault
of the same clients in every round. A new fault is one function and one row of `FAULTS`.
"""

import fractions
import math
from collections.abc import Callable, Sequence

import numpy as np

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.federated.attacks import (
    Attack,
    backdoor,
    free_rider,
    gaussian,
    inflated_counts,
    inner_product,
    label_flip,
    little_is_enough,
    scaling,
    sign_flip,
)

Absence = Callable[[np.random.Generator, int], int]
"""``(rng, steps) -> steps`` that a client takes; 0 if it does not answer."""

Fault = Absence | Attack


@checked_options
def dropout(*, probability: float) -> Absence:
    """A drawn client receives the model and, with this probability, never answers."""
    _need_share("dropout", probability=probability)
    return lambda rng, steps: 0 if rng.random() < probability else steps


@checked_options
def stragglers(*, share: float, work: float | None = None) -> Absence:
    """With probability ``share`` a client sends what it has after fewer steps than it should take.

    Its weight stays what it was, the number of its examples: partial work counts like whole work.
    A client of one step cannot be slower.

    Args:
      share: the probability; the same for all clients and rounds.
      work: part of its steps that a straggler takes, rounded up; by default their number is drawn,
        from one to one less than all.

    Li et al., "Federated Optimization in Heterogeneous Networks" (FedProx), arXiv 1812.06127, who
    draw epochs where these are steps.
    """
    _need_share("stragglers", share=share)
    if work is not None and not 0 < work <= 1:
        raise InputError(f"Fault 'stragglers' needs work above 0 and at most 1, got {work}.")

    def fault(rng: np.random.Generator, steps: int) -> int:
        if rng.random() >= share or steps < 2:
            return steps
        if work is None:
            return int(rng.integers(1, steps))
        # As the decimal number it is written as: in floating point 0.07 * 100 is above 7.
        return math.ceil(fractions.Fraction(str(work)) * steps)

    return fault


FAULTS: dict[str, Callable[..., Fault]] = {
    "dropout": dropout,
    "stragglers": stragglers,
    "sign_flip": sign_flip,
    "scaling": scaling,
    "gaussian": gaussian,
    "little_is_enough": little_is_enough,
    "inner_product": inner_product,
    "free_rider": free_rider,
    "inflated_counts": inflated_counts,
    "label_flip": label_flip,
    "backdoor": backdoor,
}
"""What can go wrong with a drawn client."""


def make_faults(given: Sequence[str]) -> tuple[Fault, ...]:
    """The faults named by specs such as ``"dropout(probability=0.1)"``, in their order.

    Raises:
      InputError: an unknown fault or option, or a value out of range.
    """
    return tuple(registry.build(spec, FAULTS, "fault") for spec in given)


def steps_taken(faults: Sequence[Fault], steps: int, *, draw: Sequence[int]) -> int:
    """The steps that are left of a client's, after all faults.

    Args:
      faults: in the order in which they happen.
      steps: those of a client with whom nothing goes wrong.
      draw: what its random draws belong to: seed, round, client.
    """
    for n, fault in enumerate(faults):
        if not isinstance(fault, Attack):
            steps = fault(np.random.default_rng([*draw, n]), steps)
    return steps


def attacks_of(faults: Sequence[Fault]) -> tuple[Attack, ...]:
    """Return the attacks among faults, in their order."""
    return tuple(fault for fault in faults if isinstance(fault, Attack))


def _need_share(name: str, **options: float) -> None:
    for option, value in options.items():
        if not 0 <= value <= 1:
            raise InputError(f"Fault {name!r} needs {option} from 0 to 1, got {value}.")
