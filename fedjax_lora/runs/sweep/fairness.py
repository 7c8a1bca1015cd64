"""How the clients of a comparison fare: their accuracies, the worst tenth, ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_lora.core.json_values import Record
from fedjax_lora.evaluation.metrics import spread_over_clients

MODELS = {"own": "own_accuracy", "global": "global_accuracy"}
"""Models that clients are scored with, and the name in a run's summary."""


class Fairness(NamedTuple):
    """Accuracies of the clients of a method on their own mix of classes, means over seeds."""

    mean: float
    worst_tenth: float
    by_rank: dict[int, float]  # mean of the clients of each rank after the last round


def fairness(summaries: Sequence[Record]) -> dict[str, Fairness] | None:
    """Return how clients fare with their own models and with the global one.

    Args:
      summaries: of the runs of a method, one for each seed.

    Returns:
      By the names of `MODELS`; None unless all runs have scored their clients.
    """
    if not all("clients" in summary for summary in summaries):
        return None
    return {name: _of([s["clients"] for s in summaries], key) for name, key in MODELS.items()}


def _of(clients: Sequence[Record], key: str) -> Fairness:
    spreads = [spread_over_clients(one[key], lower_is_better=False) for one in clients]
    by_rank: dict[int, list[float]] = {}
    for one in clients:
        rank, score = np.asarray(one["rank"]), np.asarray(one[key])
        for r in np.unique(rank).tolist():
            by_rank.setdefault(r, []).append(float(score[rank == r].mean()))
    return Fairness(
        mean=float(np.mean([spread["mean"] for spread in spreads])),
        worst_tenth=float(np.mean([spread["worst_tenth"] for spread in spreads])),
        by_rank={r: float(np.mean(values)) for r, values in sorted(by_rank.items())},
    )


def table(found: Sequence[tuple[Sequence[str], dict[str, Fairness]]]) -> list[list[str]]:
    """Return the rows of a table: labels, model, mean, worst tenth, and a column for each rank.

    Args:
      found: labels and fairness of each method.

    Returns:
      The rows, the header first but for the names of the labels.
    """
    ranks = sorted({r for _, both in found for one in both.values() for r in one.by_rank})
    rows = [["model", "mean of clients", "worst tenth", *(f"rank {r}" for r in ranks)]]
    for labels, both in found:
        for name, one in both.items():
            tiers = [f"{one.by_rank[r]:.4f}" if r in one.by_rank else "-" for r in ranks]
            rows.append([*labels, name, f"{one.mean:.4f}", f"{one.worst_tenth:.4f}", *tiers])
    return rows
