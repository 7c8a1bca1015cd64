"""The sum of products of which each client owns some components."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora.core.owned_product import sum_of_products
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods import svd

RANKS = (0, 1, 16, 17, 64, 40)
"""None, the first component, a whole level, one more, all, and a part."""


def clients(inputs: int = 30, outputs: int = 20):
    """Factors of rank 64, zero beyond a client's own, and the weights of their components."""
    rng = np.random.default_rng(0)
    owned = np.arange(64) < np.array(RANKS)[:, None]
    a = rng.normal(size=(len(RANKS), inputs, 64)) * owned[:, None]
    b = rng.normal(size=(len(RANKS), 64, outputs)) * owned[:, :, None]
    weight = rng.uniform(0.5, 1, size=owned.shape) * owned
    return tuple(x.astype(np.float32) for x in (a, b, weight))


def test_it_is_the_sum_over_clients_of_every_rank():
    a, b, weight = clients()
    want = np.einsum("kir,kr,kro->io", *(x.astype(np.float64) for x in (a, weight, b)))
    got = jax.jit(sum_of_products)(a, b, weight)
    np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())


def test_what_has_weight_0_contributes_nothing():
    a, b, weight = clients()
    a[3, :, 5], b[4, 7], weight[3, 5], weight[4, 7] = 0, 0, 0, 0
    want = jax.jit(sum_of_products)(a, b, weight)
    a[3, :, 5], b[4, 7], a[0] = np.nan, np.inf, np.nan
    np.testing.assert_array_equal(jax.jit(sum_of_products)(a, b, weight), want)


@pytest.mark.parametrize("keep", [False, True])
def test_a_method_factors_the_same_product_either_way(keep, monkeypatch):
    """Large ranks take the owned components, unless the stacks are asked for."""
    a, b, gain = clients()
    spec = LoraSpec(targets=(LoraTarget("layer", 30, 20, None),), rank=64, alpha=64.0)
    share = jnp.asarray(np.where(np.arange(64) < 60, 0.25, 0 * gain), jnp.float32)
    old = (jnp.ones((1, 30, 64)), jnp.ones((1, 64, 20)))
    given = (jnp.asarray(a), jnp.asarray(b), jnp.asarray(gain), share, *old)
    layers = {}
    for least in (64, 65):
        monkeypatch.setattr(svd, "LEAST_RANK", least)
        layers[least] = jax.jit(svd.make_layer(spec, sigma="b", keep=keep))(*given)
    products = {n: np.asarray(pair.a @ pair.b) for n, pair in layers.items()}
    np.testing.assert_allclose(products[64], products[65], atol=2e-6 * np.abs(products[65]).max())
