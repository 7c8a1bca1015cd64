"""The record of a round: losses, traffic, events, privacy and ranks, as JSON values."""

from typing import Any

import jax
import numpy as np

from fedjax_lora.core import trees
from fedjax_lora.core.types import Params
from fedjax_lora.federated import FederatedState, Plan, RoundMetrics, transforms
from fedjax_lora.federated.ranks import ClientScores, reallocation
from fedjax_lora.runs.build import Run


class RoundRecord:
    """Collects the record of one round, before and after its training.

    Attributes:
      values: the record, as a line of ``metrics.jsonl``.
      logged_rank: the ranks that the history holds last, ``int32[N]``.
    """

    def __init__(
        self,
        run: Run,
        plan: Plan,
        state: FederatedState,
        scores: ClientScores,
        *,
        logged_rank: np.ndarray,
    ) -> None:
        """Collect what is known before training, which donates the state.

        Args:
          run: the run.
          plan: plan of the round.
          state: state before the round.
          scores: scores of the clients, those for this round included.
          logged_rank: the ranks that the history holds last, ``int32[N]``.
        """
        self.values: dict[str, Any] = {}
        self.logged_rank = logged_rank
        self._run, self._plan = run, plan
        self._head = _sent_head(run, state)
        self._drawn = run.federation.drawn(plan)
        self._scoring = scoring_traffic(run, state, scores, int(plan.round))
        self._requested = run.method.traffic(state.server, plan.rank[self._drawn], int(plan.round))

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
        run, plan = self._run, self._plan
        present = plan.weight > 0
        rank[plan.id[present]] = np.asarray(metrics.rank)[present]
        up, down = self._traffic(metrics, state)
        self.values = (
            {
                "round": int(plan.round) + 1,
                "train_loss": mean_loss(metrics),
                "examples": int(np.sum(metrics.examples)),
                "up_bytes": up + self._scoring.get("score_up_bytes", 0),
                "down_bytes": down + self._scoring.get("score_down_bytes", 0),
                "rejected": plan.id[np.asarray(metrics.rejected)].tolist(),
            }
            | self._scoring
            | run.federation.events(plan)
            | run.setup.privacy(int(plan.round) + 1)
            | dict(metrics.measured)
        )
        if not np.array_equal(rank, self.logged_rank):
            self.values["ranks"] = reallocation.histogram(rank)
            self.logged_rank = rank.copy()
        return rank

    def _traffic(self, metrics: RoundMetrics, state: FederatedState) -> tuple[int, int]:
        """Return the bytes that all clients send and receive."""
        run, plan = self._run, self._plan
        # Clients that have given up rank send less than they received.
        rank = np.asarray(metrics.rank)[plan.weight > 0]
        traffic = run.method.traffic(state.server, rank, int(plan.round))
        sent = transforms.uplink_bytes(run.setup.updates, traffic, run.method.spec, self._head)
        # All drawn clients receive, but of what clients send no more than there was.
        received = self._requested.down - self._requested.common + traffic.common
        heads = self._drawn.sum() * trees.size_bytes(self._head)
        return int(sent.sum()), int(received.sum() + heads)


def _sent_head(run: Run, state: FederatedState) -> Params:
    """Return the shapes of the head that is sent each way; empty unless heads are averaged."""
    if run.config.federation.heads != "average":
        return {}
    return jax.eval_shape(lambda: state.head)


def scoring_traffic(
    run: Run, state: FederatedState, scores: ClientScores, round: int
) -> dict[str, int]:
    """Return the bytes each way of scoring clients before a round; ``{}`` if none was scored."""
    cohorts = reallocation.scoring_ranks(run.ranks.schedule, run.federation, scores, round)
    traffic = [run.method.traffic(state.server, rank, round) for rank in cohorts]
    if not traffic:
        return {}
    heads = run.config.federation.heads
    head = sum(map(len, cohorts)) * trees.size_bytes(jax.eval_shape(lambda: state.head))
    # A local head goes up only, to be validated.
    up = sum(int(t.up.sum()) for t in traffic) + head * (heads != "frozen")
    down = sum(int(t.down.sum()) for t in traffic) + head * (heads == "average")
    return {"score_up_bytes": up, "score_down_bytes": down}


def mean_loss(metrics: RoundMetrics) -> float | None:
    """Return the mean training loss over all examples; None if every update was rejected."""
    examples = np.where(metrics.rejected, 0, metrics.examples)
    if not examples.any():
        return None
    return float(np.average(np.where(examples > 0, metrics.loss, 0), weights=examples))
