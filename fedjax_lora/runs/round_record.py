"""The record of a round: losses, traffic, events, privacy and ranks, as JSON values."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora.core import trees
from fedjax_lora.core.types import Params
from fedjax_lora.federated import FederatedState, Head, Plan, RoundMetrics, transforms
from fedjax_lora.federated.clock import Timing
from fedjax_lora.federated.planning import Federation
from fedjax_lora.federated.ranks import reallocation
from fedjax_lora.methods import Method


class RecordContext(NamedTuple):
    """What the records of a run's rounds are computed from.

    Attributes:
      federation: plans the rounds.
      method: the method, which counts its traffic.
      updates: transforms of the clients' updates, which change the bytes that are sent.
      privacy: privacy spent after a number of rounds.
      heads: what happens to the task head.
      head: the head, or its shapes.
    """

    federation: Federation
    method: Method
    updates: Sequence[transforms.UpdateTransform]
    privacy: Callable[[int], dict[str, float]]
    heads: Head
    head: Params

    @property
    def sent_head(self) -> Params:
        """The head if it is sent each way; empty unless heads are averaged."""
        return self.head if self.heads == "average" else {}


class RoundRecord:
    """Collects the record of one round, before and after its training.

    Attributes:
      values: the record, as a line of ``metrics.jsonl``.
      logged_rank: the ranks that the history holds last, ``int32[N]``.
    """

    def __init__(
        self,
        context: RecordContext,
        plan: Plan,
        state: FederatedState,
        scored: Sequence[np.ndarray],
        timing: Timing | None = None,
        *,
        logged_rank: np.ndarray,
    ) -> None:
        """Collect what is known before training, which donates the state.

        Args:
          context: what records are computed from.
          plan: plan of the round.
          state: state before the round.
          scored: ranks of the clients that were scored before the round, cohort by cohort.
          timing: times on the simulated clock, if there is one.
          logged_rank: the ranks that the history holds last, ``int32[N]``.
        """
        self.values: dict[str, Any] = {}
        self.logged_rank = logged_rank
        self._timing = timing
        self._context, self._plan, self._round = context, plan, int(np.asarray(plan.round))
        self._drawn = context.federation.drawn(plan)
        self._scoring = self._scoring_traffic(state, scored)
        rank = np.asarray(plan.rank)[self._drawn]
        self._requested = context.method.traffic(state.server, rank, self._round)

    def add_metrics(
        self, metrics: RoundMetrics, state: FederatedState, rank: np.ndarray
    ) -> np.ndarray:
        """Fill in the record after training.

        Args:
          metrics: of the round.
          state: state after the round.
          rank: ranks of all clients before the round, ``int32[N]``; changed in place.

        Returns:
          The ranks of all clients after the round, ``int32[N]``.
        """
        context, plan = self._context, self._plan
        present = self._present(metrics)
        rank[plan.id[present]] = np.asarray(metrics.rank)[present]
        sent, received = self._traffic(metrics, state)
        up, down = int(sent.sum()), int(received.sum())
        self.values = (
            {
                "round": self._round + 1,
                "train_loss": mean_loss(metrics),
                "examples": int(np.sum(metrics.examples)),
                "up_bytes": up + self._scoring.get("score_up_bytes", 0),
                "down_bytes": down + self._scoring.get("score_down_bytes", 0),
                "rejected": plan.id[np.asarray(metrics.rejected)].tolist(),
                "clients": self._clients(metrics, sent, received),
            }
            | self._scoring
            | self._events()
            | context.privacy(self._round + 1)
            | few_owners(metrics)
            | dict(metrics.measured)
        )
        if not isinstance(metrics.silent, tuple):
            self.values["silent"] = plan.id[np.asarray(metrics.silent)].tolist()
        if not np.array_equal(rank, self.logged_rank):
            self.values["ranks"] = reallocation.histogram(rank)
            self.logged_rank = rank.copy()
        return rank

    def _events(self) -> dict[str, Any]:
        """Return what went wrong, and when the server closed the round."""
        timing, federation = self._timing, self._context.federation
        if timing is None:
            return federation.events(self._plan)
        return federation.events(timing.planned) | {
            "late": timing.late,
            "surplus": timing.surplus,
            "simulated_seconds": timing.seconds,
        }

    def _present(self, metrics: RoundMetrics) -> np.ndarray:
        """Who has answered, ``bool[c]``."""
        present = np.asarray(self._plan.weight) > 0
        if isinstance(metrics.silent, tuple):
            return present
        return present & ~np.asarray(metrics.silent)

    def _clients(
        self, metrics: RoundMetrics, sent: np.ndarray, received: np.ndarray
    ) -> dict[str, list[Any]]:
        """Return what each drawn client did, in the order of their ids.

        A client that does not answer has no loss and sends nothing; bytes of scoring are not here.
        """
        plan, drawn = self._plan, self._drawn
        up = np.zeros(len(plan.id), np.int64)
        up[self._present(metrics)] = sent
        loss = [
            float(value) if count > 0 and np.isfinite(value) else None
            for value, count in zip(
                np.asarray(metrics.loss)[drawn], np.asarray(metrics.examples)[drawn], strict=True
            )
        ]
        columns = {
            "id": plan.id[drawn].tolist(),
            "loss": loss,
            "steps": plan.batches.steps[drawn].tolist(),
            "up_bytes": up[drawn].tolist(),
            "down_bytes": received.tolist(),
        }
        if not isinstance(plan.staleness, tuple):
            columns["staleness"] = np.asarray(plan.staleness)[drawn].tolist()
        if self._timing is not None:
            columns["seconds"] = self._timing.total.tolist()
        order = np.argsort(plan.id[drawn], kind="stable").tolist()
        return {name: [values[k] for k in order] for name, values in columns.items()}

    def _traffic(
        self, metrics: RoundMetrics, state: FederatedState
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the bytes that each client sends, of those that answer, and receives."""
        method, head = self._context.method, self._context.sent_head
        # Clients that have given up rank send less than they received.
        rank = np.asarray(metrics.rank)[self._present(metrics)]
        traffic = method.traffic(state.server, rank, self._round)
        sent = transforms.uplink_bytes(self._context.updates, traffic, method.spec, head)
        # All drawn clients receive, but of what clients send no more than there was.
        received = self._requested.down - self._requested.common + traffic.common
        return sent, received + trees.size_bytes(head)

    def _scoring_traffic(
        self, state: FederatedState, scored: Sequence[np.ndarray]
    ) -> dict[str, int]:
        """Return the bytes each way of scoring clients; ``{}`` if none was scored."""
        context = self._context
        traffic = [context.method.traffic(state.server, rank, self._round) for rank in scored]
        if not traffic:
            return {}
        head = sum(map(len, scored)) * trees.size_bytes(context.head)
        # A local head goes up only, to be validated.
        up = sum(int(t.up.sum()) for t in traffic) + head * (context.heads != "frozen")
        down = sum(int(t.down.sum()) for t in traffic) + head * (context.heads == "average")
        return {"score_up_bytes": up, "score_down_bytes": down}


def few_owners(metrics: RoundMetrics) -> dict[str, int]:
    """Return how many components had too few owners for a robust statistic, if there was one."""
    count = metrics.few_owners
    return {} if isinstance(count, tuple) else {"few_owners": int(count)}


def mean_loss(metrics: RoundMetrics) -> float | None:
    """Return the mean training loss over all examples; None if every update was rejected."""
    examples = np.where(metrics.rejected, 0, metrics.examples)
    if not examples.any():
        return None
    return float(np.average(np.where(examples > 0, metrics.loss, 0), weights=examples))
