"""Spectra against NumPy's of dense products, and the collapse of ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, methods
from fedjax_lora.federated.diagnostics import (
    delta_spectrum,
    effective_rank,
    energy_beyond,
    stable_rank,
)
from fedjax_lora.federated.diagnostics.spectrum import layer_mean
from fedjax_lora.lora import LoraSpec, LoraTarget
from tests._helpers import cohorts
from tests._helpers.cohorts import GLOBAL, R, make_cohort, play

_spectrum = jax.jit(delta_spectrum, static_argnums=0)


@pytest.mark.parametrize("name", methods.METHODS)
def test_singular_values_equal_those_of_the_dense_delta(name: str):
    """Of adapters and changed kernels alike."""
    method, _ = cohorts.compiled(name, GLOBAL)
    cohort = make_cohort(GLOBAL, [3] * 6)
    server = cohorts.make_server(method, GLOBAL)
    after = play(name, GLOBAL, cohort, server=server).outcome.server
    found = _spectrum(GLOBAL, after, server.kernels)
    gain = lora.uniform_gain(GLOBAL)
    everything, missed = 0.0, np.zeros(R)
    for path, pair in after.adapter.items():
        a, b, g = (np.asarray(x, np.float64) for x in (*pair, gain[path]))
        delta = (a * g[..., None, :]) @ b
        if path in after.kernels:
            new, old = (np.asarray(s.kernels[path], np.float64) for s in (after, server))
            delta += new - old
        want = np.linalg.svd(delta, compute_uv=False)
        got = np.asarray(found[path])
        np.testing.assert_allclose(got, want[..., : got.shape[-1]], atol=3e-6 * want.max())
        assert np.all(want[..., got.shape[-1] :] < 1e-6 * want.max())
        everything += np.sum(want**2)
        missed += [np.sum(want[..., r:] ** 2) for r in range(1, R + 1)]
    beyond = energy_beyond(found, range(1, R + 1))
    np.testing.assert_allclose(beyond, missed / everything, atol=1e-6)
    assert beyond[0] > 0.05


def test_effective_ranks_of_known_spectra():
    values = jnp.array([[2.0, 2.0, 2.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(stable_rank(values), [3, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(effective_rank(values), [3, 1, 0], rtol=1e-6)
    uneven = jnp.array([3.0, 1.0])
    assert float(stable_rank(uneven)) == pytest.approx(10 / 9)
    share = np.array([0.75, 0.25])
    assert float(effective_rank(uneven)) == pytest.approx(np.exp(-np.sum(share * np.log(share))))
    # A layer without energy (left out, or before the first round) does not count.
    assert float(layer_mean({"x": values}, {"x": stable_rank(values)})) == pytest.approx(2)


def test_zero_delta_has_no_effective_rank():
    zero = {"x": jnp.zeros((2, 4))}
    np.testing.assert_array_equal(energy_beyond(zero, [0, 1, 4]), np.zeros(3))


def test_flexlora_without_training_shrinks_high_rank_energy_geometrically():
    """Property 24: aggregate and redistribute without training; the owners' share is a quarter."""
    most, share = 8, 0.25
    spec = LoraSpec(targets=(LoraTarget("x", 20, 18, None),), rank=most, alpha=float(most))
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(d, most)))[0] for d in (20, 18))
    spectrum = np.arange(8.0, 0.0, -1.0)
    adapter = {"x": cohorts.pair(u * spectrum, v.T)}
    method = methods.make("flexlora", spec)
    server = method.init(adapter, {"x": jnp.zeros((20, 18))})
    cohort = make_cohort(spec, [2, 2, 2, 8])

    @jax.jit
    def again(server):
        start = method.broadcast(server, (), cohort)
        return method.aggregate(server, (), cohort, start, start.adapter).server

    for t in range(3):
        want = np.where(np.arange(most) < 2, spectrum, spectrum * share**t)
        found = _spectrum(spec, server, {})
        np.testing.assert_allclose(found["x"], want, rtol=1e-4)
        tail = np.sum(want[2:] ** 2) / np.sum(want**2)
        np.testing.assert_allclose(energy_beyond(found, [2]), [tail], rtol=1e-4)
        server = again(server)


def test_equal_factor_shapes_do_not_confuse_products():
    """Both factors and the scale matter."""
    rng = np.random.default_rng(1)
    spec = LoraSpec(targets=(LoraTarget("x", 9, 7, None),), rank=2, alpha=6.0)
    pair = cohorts.pair(rng.normal(size=(9, 2)), rng.normal(size=(2, 7)))
    found = _spectrum(spec, methods.ServerState({"x": pair}, {}), {})
    want = np.linalg.svd(3.0 * np.asarray(pair.a) @ np.asarray(pair.b), compute_uv=False)[:2]
    np.testing.assert_allclose(found["x"], want, rtol=1e-5)
