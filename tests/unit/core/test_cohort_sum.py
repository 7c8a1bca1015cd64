"""Weighted sums over clients, in groups on a CPU and at once on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated
from fedjax_lora.core import layerwise
from fedjax_lora.core.cohort_sum import GROUP, weighted_sum

compiled = jax.jit(weighted_sum)


@pytest.mark.parametrize("count", [1, GROUP - 1, GROUP, 2 * GROUP + 3])
def test_it_is_the_sum_of_every_client(count):
    rng = np.random.default_rng(count)
    x = rng.normal(size=(count, 2, 5, 3)).astype(np.float32)
    weight = rng.normal(size=(count, 1, 1, 3)).astype(np.float32)
    want = np.sum(x.astype(np.float64) * weight, axis=0)
    np.testing.assert_allclose(compiled(x, weight), want, atol=1e-5)


def test_what_has_weight_0_contributes_nothing():
    x = np.ones((2 * GROUP + 1, 3), np.float32)
    x[0], x[GROUP], x[-1] = np.nan, np.inf, -np.inf
    weight = np.ones((len(x), 1), np.float32)
    weight[[0, GROUP, -1]] = 0
    np.testing.assert_array_equal(compiled(x, weight), np.full(3, len(x) - 3))
    assert np.isnan(compiled(x, np.ones((len(x), 1), np.float32))).all()


def test_a_cpu_adds_in_groups_and_a_mesh_reduces_its_share():
    given = (jnp.ones((2 * GROUP, 3)), jnp.ones((2 * GROUP, 1)))

    def on_mesh(x, weight):
        with layerwise.spread_over(federated.client_mesh(2)):
            return weighted_sum(x, weight)

    alone, spread = (str(jax.make_jaxpr(fn)(*given)) for fn in (weighted_sum, on_mesh))
    assert "while" in alone or "scan" in alone
    assert "while" not in spread and "scan" not in spread and "reduce_sum" in spread
