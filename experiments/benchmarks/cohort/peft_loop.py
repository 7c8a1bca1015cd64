"""The alternative: one client after another in PyTorch and PEFT."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.benchmarks import peft_client
from experiments.benchmarks.cohort.work import RATE, Case, Work


def contender(case: Case, model: str, work: Work, start: dict[str, np.ndarray]) -> Callable:
    """Return a function that computes a round from the initial state and returns its mean loss."""
    net, parts = peft_client.network(model, case.ranks)
    data: dict[str, Any] = {"length": work.length}
    data |= {name: torch.from_numpy(getattr(work, name)) for name in ("ids", "types")}
    data["label"] = torch.from_numpy(work.label).long()
    classes = int(work.label.max()) + 1
    assert net.config.num_labels >= classes
    first = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in start.items()}
    head = [p.detach().clone() for p in parts[case.ranks[0]]["head"]]

    def round() -> float:
        losses, sums = [], {name: [0, 0] for name in start}
        for k, rank in enumerate(work.rank.tolist()):
            own = parts[rank]
            net.set_adapter(f"r{rank}")
            with torch.no_grad():
                for name, (a, b) in own["factors"].items():
                    a.copy_(first[name][:rank])
                    b.zero_()
                for p, value in zip(own["head"], head, strict=True):
                    p.copy_(value)
            steps = range(int(work.steps[k]))
            batches = [work.index[k, s][work.valid[k, s]] for s in steps]
            losses.append(peft_client.train(net, own["all"], batches, data, RATE))
            with torch.no_grad():
                for name, (a, b) in own["factors"].items():
                    _add(sums[name], a, b, case)
        return float(np.mean(losses))

    return round


def _add(total: list, a: Any, b: Any, case: Case) -> None:
    """Add a client's factors to the server's sums, padded with zeros."""
    pad = max(case.ranks) - a.shape[0]
    total[0] = total[0] + torch.nn.functional.pad(a, (0, 0, 0, pad))
    total[1] = total[1] + torch.nn.functional.pad(b, (0, pad))
