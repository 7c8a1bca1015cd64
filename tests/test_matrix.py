"""Every method in every mode: the same server, and a model that learns."""

import jax
import numpy as np
import problems
import pytest
from problems import bag_rounds, ranks_for

from fedjax_lora import methods

every_method = pytest.mark.parametrize("method", list(methods.METHODS))

TOLERANCE = 2e-5
"""Two rounds of three steps of 0.05; the second begins with what the first left, rounding included.
Measured: see the report of `problems.MODE_TOLERANCE`; products go through an SVD on top."""


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """Most of the time here would be spent on optimising programs that run for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def play(method: str, mode: str, count: int, rate: float = 0.05):
    """Some rounds: the state at the end, and what every round reported."""
    made, fed = bag_rounds(method, mode), problems.round_federation()
    state, reports = made.state(), []
    for t in range(count):
        state, seen = made.run(state, fed.plan(t, ranks_for(method), rate))
        reports.append(problems.copy(seen))
    return problems.copy(state), reports, made


@every_method
def test_modes_leave_the_same_server(method):
    want, reports, made = play(method, "loop", 2)
    assert problems.changed(want.server, made.begin.server)
    for mode in ("vmap", "sharded"):
        got, seen, _ = play(method, mode, 2)
        problems.assert_close(got, want, TOLERANCE)
        for one, other in zip(seen, reports, strict=True):
            np.testing.assert_allclose(one.loss, other.loss, atol=TOLERANCE)
            np.testing.assert_array_equal(one.examples, other.examples)
            np.testing.assert_array_equal(one.rejected, other.rejected)
            np.testing.assert_array_equal(one.rank, other.rank)


@every_method
def test_the_loss_falls(method):
    _, reports, _ = play(method, "vmap", 16)
    means = [np.average(r.loss, weights=r.examples) for r in reports]
    assert np.all(np.isfinite(means))
    assert np.mean(means[-4:]) < 0.5 * np.mean(means[:2])
