"""The simulated clock: how long each client takes for a round, and who is in time.

A client receives, computes and sends, one after the other; the server's own time counts as nothing.
Everything is computed on the host from the plan, from bytes as the method would send them, and from
the clients' `Devices`, so the clock of a resumed run is that of the first one.
"""

from typing import NamedTuple

import numpy as np

from fedjax_lora.data import batching
from fedjax_lora.federated.clock.deadlines import Deadline
from fedjax_lora.federated.clock.devices import Devices
from fedjax_lora.federated.state import Plan


class Work(NamedTuple):
    """Operations and memory of a client's training, linear in its rank.

    Operations are those of the matrix products in both passes, for one token.
    """

    flops: float  # of base and head
    flops_of_component: float  # more, for every component that the client trains
    memory: float  # bytes: the base and the head with its gradient and moments; no activations
    memory_of_component: float  # bytes more, for every component
    trainings: int = 1  # a probe is a training of its own

    def token_flops(self, rank: np.ndarray) -> np.ndarray:
        """Return the operations of a token in a round, ``float[c]``."""
        return self.trainings * (self.flops + self.flops_of_component * rank)

    def bytes(self, rank: np.ndarray) -> np.ndarray:
        """Return the memory of a client at a rank, ``float[c]``."""
        return self.memory + self.memory_of_component * rank


class Timing(NamedTuple):
    """The times of one round in seconds; columns are in the order of the plan's drawn clients."""

    planned: Plan  # before late clients were taken out
    download: np.ndarray  # float[c]
    compute: np.ndarray  # float[c], of the steps that were taken
    upload: np.ndarray  # float[c], 0 for those who do not send
    seconds: float  # of the round
    late: list[int]  # ids of clients that were not ready at the deadline, ascending
    surplus: list[int]  # ids of clients that were drawn, but not needed any more

    @property
    def total(self) -> np.ndarray:
        """Seconds of each client."""
        return self.download + self.compute + self.upload


class Clock(NamedTuple):
    """The devices of a federation, the work of its clients, and the server's deadline."""

    devices: Devices
    work: Work
    deadline: Deadline
    cohort: int  # answers that the server waits for

    def close(self, plan: Plan, down: np.ndarray, up: np.ndarray) -> tuple[Plan, Timing]:
        """Let a round pass, and leave out what is not there when the server closes it.

        Args:
          plan: of the round. Clients without steps do not answer.
          down: bytes that each drawn client receives, ``int[d]`` in the order of the plan.
          up: bytes that each of them would send.

        Returns:
          The plan with late and superfluous clients at weight 0 (or fewer steps), and the times.
        """
        d = len(down)
        ids, rank = np.asarray(plan.id)[:d], np.asarray(plan.rank)[:d]
        receive, send = down / self.devices.down[ids], up / self.devices.up[ids]
        rate = self.work.token_flops(rank) / self.devices.flops[ids]
        due, tokens = np.asarray(plan.batches.steps)[:d], np.asarray(plan.batches.tokens)[:d]
        steps, late = self._in_time(tokens * rate[:, None], due, receive + send)
        # A client that works until the deadline answers at it.
        finish = receive + send + _sum_of(tokens, steps) * rate
        finish = np.where(late, self.deadline.seconds, finish)
        answers = (steps > 0) & (np.asarray(plan.weight)[:d] > 0)
        counts = answers & _first(np.where(answers, finish, np.inf), ids, self.cohort)
        seconds = self._closed(finish, counts)
        # What a client does in vain takes its time too, until the server closes the round.
        in_vain = np.clip(seconds - receive, 0, _sum_of(tokens, due) * rate)
        timing = Timing(
            planned=plan,
            download=receive,
            compute=np.where(counts, _sum_of(tokens, steps) * rate, in_vain),
            upload=np.where(counts, send, 0.0),
            seconds=seconds,
            late=np.sort(ids[late]).tolist(),
            surplus=np.sort(ids[answers & ~counts]).tolist(),
        )
        return _limited(plan, np.where(counts, steps, 0)), timing

    def times(
        self,
        ids: np.ndarray,
        rank: np.ndarray,
        tokens: np.ndarray,
        *,
        down: np.ndarray,
        up: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Seconds in which clients receive, compute and send, ``float[c]`` each.

        Args:
          ids: of the clients.
          rank: their ranks.
          tokens: that they train on.
          down: bytes that they receive.
          up: bytes that they send.
        """
        compute = tokens * self.work.token_flops(rank) / self.devices.flops[ids]
        return down / self.devices.down[ids], compute, up / self.devices.up[ids]

    def _in_time(
        self, seconds: np.ndarray, due: np.ndarray, traffic: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The steps that clients send, ``int[c]``, and who is not ready at the deadline.

        Args:
          seconds: of each step, ``float[c, s]``.
          due: steps that a client would take.
          traffic: seconds of receiving and sending.
        """
        ready = traffic[:, None] + np.cumsum(seconds, axis=1)
        own = np.arange(seconds.shape[1]) < due[:, None]
        fits = np.sum(own & (ready <= self.deadline.seconds), axis=1)
        late = (fits < due) & (due > 0)
        if self.deadline.late == "drop":
            fits = np.where(late, 0, fits)
        return fits, late

    def _closed(self, finish: np.ndarray, counts: np.ndarray) -> float:
        """When the server has what it waits for, or waits no longer."""
        last = float(finish[counts].max(initial=0.0))
        enough = counts.sum() >= min(self.cohort, len(counts))
        return last if enough or np.isinf(self.deadline.seconds) else float(self.deadline.seconds)


def _sum_of(tokens: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Tokens of each client's first steps, ``int[c]``."""
    return np.sum(np.where(np.arange(tokens.shape[1]) < steps[:, None], tokens, 0), axis=1)


def _first(finish: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Who is among the first to finish, the lower id first where two are: ``bool[c]``."""
    chosen = np.zeros(len(finish), bool)
    chosen[np.lexsort((ids, finish))[:count]] = True
    return chosen & np.isfinite(finish)


def _limited(plan: Plan, steps: np.ndarray) -> Plan:
    """The plan with the drawn clients' steps; clients without steps have no weight."""
    absent = len(plan.id) - len(steps)
    steps = np.concatenate([steps, np.zeros(absent, steps.dtype)])
    return plan._replace(
        weight=np.where(steps > 0, plan.weight, 0).astype(np.float32),
        batches=batching.limit_steps(plan.batches, steps),
    )
