"""When the server closes a round: deadlines and over-selection.

A deadline is a record; what it does to a round is `fedjax_lora.federated.clock.Clock`'s. A new one
is one function and one row of `DEADLINES`.
"""

import fractions
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options

Late = Literal["drop", "partial"]


class Deadline(NamedTuple):
    """When the server closes a round."""

    seconds: float = math.inf  # after which nothing is waited for
    over: float = 1.0  # clients drawn, in cohorts; the first cohort that answers counts
    late: Late = "drop"

    def drawn(self, cohort: int, clients: int) -> int:
        """Return the number of clients that are drawn for a cohort, at most all.

        >>> Deadline(over=1.3).drawn(10, 50)
        13
        """
        return min(math.ceil(fractions.Fraction(str(self.over)) * cohort), clients)


def none() -> Deadline:
    """Wait for all clients of the cohort."""
    return Deadline()


@checked_options
def first(*, over: float) -> Deadline:
    """Draw more clients than a cohort and wait until a cohort has answered.

    Bonawitz et al., "Towards Federated Learning at Scale", arXiv 1902.01046, draw 1.3 times as
    many.

    Args:
      over: clients drawn, in cohorts; rounded up.
    """
    return Deadline(over=_checked("first", over))


@checked_options
def after(*, seconds: float, over: float = 1.0, late: Late = "drop") -> Deadline:
    """Close a round after so many seconds, or as soon as a cohort has answered.

    Args:
      seconds: of simulated time, from the moment when the server begins to send.
      over: clients drawn, in cohorts; rounded up.
      late: what a client does that cannot take all its steps in time: nothing that arrives
        (``drop``), or it sends what it has after the steps that fit (``partial``).

    Raises:
      InputError: seconds that are not above 0, or less than one cohort drawn.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"Deadline 'after' needs seconds above 0 and finite, got {seconds}.")
    return Deadline(seconds, _checked("after", over), late)


DEADLINES: dict[str, Callable[..., Deadline]] = {"none": none, "first": first, "after": after}
"""Factories of deadlines by name; options are their keyword arguments."""


def _checked(name: str, over: float) -> float:
    if not 1 <= over <= 100:
        raise InputError(f"Deadline {name!r} needs over from 1 to 100, got {over}.")
    return over
