"""The PEFT loop: one client after another in one process."""

from typing import Any

import peft
import torch

from experiments.benchmarks.end_to_end import federated
from experiments.benchmarks.end_to_end.work import Work


def run(work: Work) -> dict[str, Any]:
    """Run the experiment; returns losses and scores by round."""
    tools = federated.tools(work, ("train", "test"))
    model, rounds, most = federated.first(work, tools), work.rounds, work.ranks[-1]
    history = []
    for t in range(len(rounds.rate)):
        answers = [
            federated.visit(
                tools,
                federated.cut(model, rank, len(work.start)),
                rounds.batches(t, k),
                rank,
                float(rounds.rate[t]),
            )
            for k, rank in enumerate(rounds.rank[t].tolist())
        ]
        model = federated.mean([sent for sent, _ in answers], rounds.weight[t], model)
        history.append({"train_loss": rounds.mean_loss(t, [loss for _, loss in answers])})
        if rounds.tested[t]:
            history[-1] |= federated.evaluate(tools, model, most)
    return {"history": history, "versions": {"torch": torch.__version__, "peft": peft.__version__}}
