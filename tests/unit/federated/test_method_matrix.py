"""Methods of every kind in every mode: the same server, and a model that learns."""

import numpy as np
import pytest

from fedjax_lora import lora, methods
from tests._helpers import problems
from tests._helpers.problems import ON_THE_BASE, bag_rounds, ranks_for
from tests._helpers.tolerances import FROM_AN_SVD, TOLERANCE

kinds_of_method = pytest.mark.parametrize("method", problems.one_of_each_kind())


CHOICES = {"fedrora": "fedrora(coefficient_rate=1.0)"}
"""Options in place of the defaults. Adam's first step has the size of the learning rate, whatever
the gradient; at a hundred times the rate, the paper's, rounding would decide this problem."""


def play(method: str, mode: str, count: int, rate: float):
    """Some rounds: the state at the end, and what every round reported."""
    method = CHOICES.get(method, method)
    made, fed = bag_rounds(method, mode), problems.round_federation()
    state, reports = made.state(), []
    for t in range(count):
        state, seen = made.run(state, fed.plan(t, ranks_for(method), rate))
        reports.append(problems.copy(seen))
    return problems.copy(state), reports, made


def model(state):
    """What the server's model computes with: adapted kernels and head."""
    spec = problems.bag().spec
    added = lora.deltas(state.server.adapter, lora.uniform_gain(spec))
    return added, state.server.kernels, state.head


@kinds_of_method
def test_execution_modes_give_the_same_server(method):
    """More methods are sharded in `test_sharding`, with a stand-in for training."""
    others = ("sharded", "base in parts") if method in ON_THE_BASE else ()
    assert_modes_agree(method, ("vmap", *others))


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in methods.METHODS if m not in ON_THE_BASE])
def test_sharding_over_a_mesh_gives_the_same_server(method):
    assert_modes_agree(method, ("sharded", "base in parts"))


def assert_modes_agree(method: str, modes) -> None:
    """Two rounds in each mode report and leave what two rounds of the plain loop do."""
    want, reports, made = play(method, "loop", 2, 0.01)
    assert problems.changed(model(want), model(made.begin))
    for mode in modes:
        got, seen, _ = play(method, mode, 2, 0.01)
        tolerance = TOLERANCE.get(method, problems.MODE_TOLERANCE)
        problems.assert_close(model(got), model(want), tolerance)
        if method not in FROM_AN_SVD:
            problems.assert_close(got, want)
        for one, other in zip(seen, reports, strict=True):
            np.testing.assert_allclose(one.loss, other.loss, atol=problems.MODE_TOLERANCE)
            np.testing.assert_array_equal(one.examples, other.examples)
            np.testing.assert_array_equal(one.rejected, other.rejected)
            np.testing.assert_array_equal(one.rank, other.rank)


@kinds_of_method
def test_training_loss_decreases(method):
    _, reports, _ = play(method, "vmap", 16, 0.05)
    means = [np.average(r.loss, weights=r.examples) for r in reports]
    assert np.all(np.isfinite(means))
    assert np.mean(means[-4:]) < 0.6 * np.mean(means[:2])
