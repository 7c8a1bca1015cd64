"""FedProx's term in a client's descent, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_lora.federated import LocalTraining
from tests._helpers import problems
from tests._helpers.problems import batches_of, stub_clients

POINTS = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
BEGIN = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
WORK = batches_of([[4, 5], [6, 7], [8]], [[0, 1], [2]])


@pytest.mark.parametrize("mu", [0.5, 3.0])
def test_proximal_term_pulls_towards_the_round_start(mu):
    """And the loss that is reported is the task's alone."""
    train = jax.jit(LocalTraining(problems.quadratic(), optax.sgd(1.0), prox=mu))
    adapter = jax.tree.map(lambda s: jnp.ones((2, *s.shape)), problems.STUB.shapes())
    clients = stub_clients(BEGIN, WORK, adapter=adapter)
    got, report = train((), POINTS, clients, jnp.float32(0.2))
    for k in range(2):
        start = w = BEGIN[k].astype(np.float64)
        total, count = 0.0, 0
        for s in range(int(WORK.steps[k])):
            x = POINTS[WORK.index[k, s][WORK.valid[k, s]]].astype(np.float64)
            total, count = total + 0.5 * np.sum((w - x) ** 2), count + len(x)
            w = w - 0.2 * ((w - x.mean(axis=0)) + mu * (w - start))
        np.testing.assert_allclose(got.head["w"][k], w, rtol=2e-6, atol=1e-7)
        assert report.loss[k] == pytest.approx(total / count, rel=1e-6)
    # What does not move is not pulled.
    for leaf in jax.tree.leaves(got.adapter):
        np.testing.assert_array_equal(leaf, 1)
