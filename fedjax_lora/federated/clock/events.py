"""The events of a server that does not wait for all: who begins and who answers when.

Time passes from answer to answer. Everything is drawn from the seed, and how long a client takes is
known when it begins, so the events of any round follow from those before it, and a resumed run
plays them again without training.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_lora.federated.clock.servers import Server

Draw = Callable[[int, int, np.ndarray, int], np.ndarray]
"""``(round, number of the draw in it, idle clients, count) -> ids``."""

Take = Callable[[int, np.ndarray], np.ndarray]
"""``(round, ids) -> seconds`` that clients take which begin in a round, ``float[c]``."""


class Job(NamedTuple):
    """A client at work; they are ordered by when they answer, the lower id first."""

    answers: float  # seconds since the beginning
    id: int
    round: int  # in which it began


class Answered(NamedTuple):
    """The answers that make a round."""

    jobs: tuple[Job, ...]  # in the order of their arrival
    seconds: float  # since the last round
    stopped: tuple[int, ...]  # ids of clients that would be too late, ascending


@dataclasses.dataclass
class Events:
    """All that happens, round by round.

    Attributes:
      server: when it makes a new model.
      clients: `N`.
      cohort: clients at work at a time.
      draw: who begins.
    """

    server: Server
    clients: int
    cohort: int
    draw: Draw

    def __post_init__(self) -> None:
        self._done: list[Answered] = []
        self._working: list[Job] = []
        self._now, self._draws = 0.0, 0

    def answered(self, round: int, take: Take) -> Answered:
        """Return the answers that make a round, counted from 0.

        Args:
          round: any; those before it are played first if they have not been.
          take: how long clients take; not asked again for what has been played.
        """
        while len(self._done) <= round:
            self._play(take)
        return self._done[round]

    def _play(self, take: Take) -> None:
        """Play the next round."""
        began = self._now
        here: list[Job] = []
        if not self._working:
            self._begin(here, take)
        while len(here) < self.server.answers(self.cohort):
            job = min(self._working)
            if here and self.server.refill == "answer" and job.answers > self._now:
                self._begin(here, take)
                job = min(self._working)
            self._working.remove(job)
            self._now = job.answers
            here.append(job)
        stopped = self._stop(len(self._done) + 1)
        self._done.append(Answered(tuple(here), self._now - began, stopped))
        self._draws = 0
        self._begin([], take)

    def _begin(self, here: Sequence[Job], take: Take) -> None:
        """Let idle clients begin with the present model; those who have just answered wait."""
        round, count = len(self._done), self.cohort - len(self._working)
        busy = {job.id for job in (*self._working, *here)}
        idle = np.array([k for k in range(self.clients) if k not in busy], int)
        ids = self.draw(round, self._draws, idle, min(count, len(idle))) if count else idle[:0]
        if not len(ids):
            return
        self._draws += 1
        for id, seconds in zip(ids.tolist(), take(round, ids).tolist(), strict=True):
            self._working.append(Job(self._now + seconds, id, round))

    def _stop(self, round: int) -> tuple[int, ...]:
        """Stop the clients that would be too late in this round."""
        most = self.server.staleness.most
        late = [job for job in self._working if round - job.round > most]
        self._working = [job for job in self._working if round - job.round <= most]
        return tuple(sorted(job.id for job in late))
