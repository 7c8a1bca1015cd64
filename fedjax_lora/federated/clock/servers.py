"""Servers: how long one waits for clients before it makes a new model.

A new one is one function and one row of `SERVERS`; what becomes of clients that answer to an
earlier model is `fedjax_lora.federated.staleness`.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.federated.staleness import Staleness
from fedjax_lora.methods.base import Mix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A server that makes a new model while some of its clients are still at work.

    As many clients as a cohort has are at work at any time.

    Attributes:
      buffer: answers that make a new model, and so a round; None for a cohort.
      refill: whether clients begin as soon as others have answered (``answer``), or all at once
        with the new model (``round``).
      staleness: how late answers are mixed into the model.
    """

    buffer: int | None
    refill: Literal["answer", "round"]
    staleness: Staleness

    def answers(self, cohort: int) -> int:
        """Return how many answers make a round.

        Raises:
          InputError: more than clients that are at work.
        """
        count = self.buffer or cohort
        if count > cohort:
            raise InputError(
                f"A server that waits for {count} answers needs as many clients at work; give a "
                f"cohort of at least {count} (it is {cohort}), or a smaller buffer."
            )
        return count


def synchronous() -> None:
    """A round waits for its cohort, see `fedjax_lora.federated.clock.deadlines`."""


@checked_options
def fedasync(
    *, mixing: float = 0.6, mix: Mix = "models", exponent: float = 0.5, most: int = 16
) -> Server:
    """FedAsync: every answer makes a new model, ``(1 - s) x + s x_k``.

    ``s = mixing * (1 + staleness)^-exponent``, the paper's polynomial discount.

    Args:
      mixing: weight of an answer that is not late; the paper's 0.6.
      mix: ``changes`` adds ``s`` times the client's change instead.
      exponent: of the discount; the paper's 0.5.
      most: clients that are later than this are stopped.

    Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv 1903.03934.
    """
    return Server(buffer=1, refill="answer", staleness=_staleness(mix, exponent, mixing, most))


@checked_options
def fedbuff(
    *, buffer: int = 10, mix: Mix = "changes", exponent: float = 0.5, most: int = 16
) -> Server:
    """FedBuff: every ``buffer`` answers make a new model, while other clients go on.

    ``x + mean_k s_k (x_k - start_k)`` with ``s = (1 + staleness)^-exponent`` and the method's mean.

    Args:
      buffer: answers that make a new model; the paper's 10.
      mix: ``models`` mixes models in place of changes, which products need.
      exponent: of the discount; the paper's 0.5.
      most: clients that are later than this are stopped, as in Huba et al., "Papaya",
        MLSys 2022.

    Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", arXiv 2106.06639.
    """
    _check_buffer("fedbuff", buffer)
    return Server(buffer=buffer, refill="answer", staleness=_staleness(mix, exponent, 1.0, most))


@checked_options
def semi_synchronous(
    *, buffer: int | None = None, mix: Mix = "changes", exponent: float = 0.5, most: int = 16
) -> Server:
    """Every ``buffer`` answers make a new model, with which as many new clients begin.

    The others go on, and are late. With a buffer of a cohort this is the synchronous round.

    Args:
      buffer: answers that make a new model; a cohort by default.
      mix: ``changes`` or ``models``.
      exponent: of the discount ``(1 + staleness)^-exponent``.
      most: clients that are later than this are stopped.

    After Ma et al., "FedSA: A Semi-Asynchronous Federated Learning Mechanism in Heterogeneous Edge
    Computing", IEEE JSAC 39(12), 2021.
    """
    if buffer is not None:
        _check_buffer("semi_synchronous", buffer)
    return Server(buffer=buffer, refill="round", staleness=_staleness(mix, exponent, 1.0, most))


SERVERS: dict[str, Callable[..., Server | None]] = {
    "synchronous": synchronous,
    "fedasync": fedasync,
    "fedbuff": fedbuff,
    "semi_synchronous": semi_synchronous,
}
"""Factories of servers by name; options are their keyword arguments."""


def _staleness(mix: Mix, exponent: float, rate: float, most: int) -> Staleness:
    return Staleness(mix=mix, exponent=exponent, rate=rate, most=most)


def _check_buffer(name: str, buffer: int) -> None:
    if buffer < 1:
        raise InputError(f"Server {name!r} needs a buffer of at least 1, got {buffer}.")
