"""Scores of every client after a run."""

import dataclasses

import numpy as np
import pytest

from fedjax_lora import InputError
from fedjax_lora.runs.fairness import check_clients_can_be_scored
from fedjax_lora.runs.run import run
from tests._helpers import tiny_runs

CONFIG = tiny_runs.change(
    tiny_runs.CONFIG, {"execution.evaluate_clients": True, "execution.eval_every": 4}
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "heads"),
    [("zero_padding", "average"), ("zero_padding", "local"), ("fedsa_lora", "average")],
)
def test_clients_are_scored_with_their_own_model_and_the_global_one(method, heads):
    """Without personal parts a client of the highest rank has the server's model."""
    assets = tiny_runs.assets()
    changes = tiny_runs.with_method(method) | {"federation.heads": heads}
    result = run(tiny_runs.change(CONFIG, changes), assets=assets)
    clients = result.summary["clients"]
    assert clients["rank"] == result.rank.tolist() and sum(clients["examples"]) > 0
    own, of_server = (np.array(clients[f"{name}_accuracy"]) for name in ("own", "global"))
    assert own.shape == of_server.shape == (5,) and own.min() >= 0 and of_server.max() <= 1
    if (method, heads) == ("zero_padding", "average"):
        highest = result.rank == result.rank.max()
        np.testing.assert_allclose(own[highest], of_server[highest])


def test_tasks_without_classes_are_refused():
    task = tiny_runs.assets().task
    scores = dataclasses.replace(task.task, name="scores", metric="pearson")
    regression = task._replace(classes=(), task=scores)
    check_clients_can_be_scored(CONFIG, task)
    with pytest.raises(InputError, match="task 'scores' has no classes"):
        check_clients_can_be_scored(CONFIG, regression)
