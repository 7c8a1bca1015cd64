"""Stacked factors merged into the base: exact for any ranks, and a fresh start every round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import methods
from fedjax_lora.core.types import LoRA
from fedjax_lora.lora import LoraSpec, LoraTarget
from tests._helpers import cohorts
from tests._helpers.cohorts import (
    CLIENTS,
    GLOBAL,
    PER_CLIENT,
    R,
    assert_close,
    assert_trees_equal,
    client,
    client_deltas,
    make_cohort,
    play,
    server_delta,
)

MIXED = [1, 2, 3, 4, 2, 1]
WEIGHT = [30.0, 5.0, 11.0, 17.0, 80.0, 2.0]
SPECS = cohorts.specs_of("flora")
PATHS = [s.path for s in GLOBAL.targets]


@pytest.mark.parametrize("lora_spec", [GLOBAL, PER_CLIENT], ids=["alpha/R", "alpha/r"])
@pytest.mark.parametrize("weights", ["examples", "uniform"])
def test_base_absorbs_the_exact_mean_of_products(weights: str, lora_spec: LoraSpec):
    """Any ranks, no aggregation noise; the rank of the change is the sum of ranks."""
    spec = "flora" if weights == "examples" else "flora(weights='uniform')"
    server = cohorts.make_server(methods.make(spec, GLOBAL), GLOBAL)
    weight = np.array([30, 5, 11, 0, 80, 0])  # ranks 1, 2, 3, 2 are there: 8 together
    # A client's scale is data: one compiled function serves both rules.
    played = play(spec, GLOBAL, make_cohort(lora_spec, MIXED, weight), server=server)
    share = weight / weight.sum() if weights == "examples" else (weight > 0) / 4
    present = weight > 0
    for target in lora_spec.targets:
        a, b = (np.asarray(x, np.float64)[present] for x in played.result[target.path])
        gain = np.asarray(played.start.gain[target.path], np.float64)[present]
        mean = np.tensordot(share[present], (a * gain[..., None, :]) @ b, 1)
        before = np.asarray(server.kernels[target.path], np.float64)
        change = np.asarray(played.outcome.server.kernels[target.path]) - before
        assert np.max(np.abs(change - mean)) < 2e-6 * np.max(np.abs(before))
        for layer in range(len(target.layers or ())):
            spectrum = np.linalg.svd(change[layer], compute_uv=False)
            rank = np.sum(spectrum > 1e-4)
            assert rank == (8 if target.layers[layer] else 0)


@pytest.mark.parametrize("spec", SPECS)
def test_every_round_starts_with_a_zero_adapter(spec: str):
    """``b = 0`` exactly, ``a`` random: outputs and effective weights of all clients are equal."""
    method, _ = cohorts.compiled(spec, GLOBAL)
    server = cohorts.make_server(method, GLOBAL)
    cohort = make_cohort(GLOBAL, MIXED, WEIGHT)
    for seed in range(2):
        start = method.broadcast(server, (), cohort._replace(key=jax.random.key(seed)))
        for delta in client_deltas(start, start.adapter).values():
            assert not np.any(delta)
        for path in PATHS:
            a, b = start.adapter[path]
            assert not np.any(b)
            for n, r in enumerate(MIXED):
                used = np.asarray(a[n])[..., :r]
                adapted = used.reshape(-1, *used.shape[-2:])[[0, -1]]
                assert np.all(np.any(adapted != 0, axis=-2))
        server = play(spec, GLOBAL, cohort, server=server).outcome.server
        # Nothing but the kernels is carried over, so they are every client's effective weight.
        assert not any(np.any(x) for x in jax.tree.leaves(server.adapter))
        assert not any(np.any(x) for x in server_delta(GLOBAL, server).values())


def test_each_round_draws_a_new_random_factor():
    method = methods.make("flora", GLOBAL)
    server = cohorts.make_server(method, GLOBAL)
    starts = [
        method.broadcast(server, (), make_cohort(GLOBAL, [R] * CLIENTS, seed=seed)).adapter
        for seed in (0, 1, 0)
    ]
    assert_trees_equal(starts[0], starts[2])
    for path in PATHS:
        assert np.max(np.abs(starts[0][path].a - starts[1][path].a)) > 0.01


def test_base_accumulates_the_means_of_all_rounds():
    """``W_t = W_0 + sum of all rounds' mean products``."""
    method, _ = cohorts.compiled("flora", GLOBAL)
    server = cohorts.make_server(method, GLOBAL)
    want = {path: np.asarray(kernel, np.float64) for path, kernel in server.kernels.items()}
    share = np.array(WEIGHT) / sum(WEIGHT)
    for n in range(3):
        cohort = make_cohort(GLOBAL, MIXED, WEIGHT, round=n, seed=n)
        played = play("flora", GLOBAL, cohort, server=server, seed=n)
        server = played.outcome.server
        for path, delta in client_deltas(played.start, played.result).items():
            want[path] = want[path] + np.tensordot(share, np.asarray(delta, np.float64), 1)
            assert_close(server.kernels[path], want[path], 2e-6)


def test_first_gradient_of_a_is_zero():
    """The cost of a fresh ``b = 0``: ``a`` does not move in the first step of any round."""
    method = methods.make("flora", GLOBAL)
    server = cohorts.make_server(method, GLOBAL)
    start = method.broadcast(server, (), make_cohort(GLOBAL, [R] * CLIENTS))
    path = PATHS[1]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)

    def loss(pair: LoRA) -> jax.Array:
        return jnp.sum(jnp.sin(x @ pair.a @ pair.b + 1.0))

    grad = jax.grad(loss)(client(start.adapter[path], 0))
    assert not np.any(grad.a)
    assert np.all(np.any(grad.b != 0, axis=-1))


def test_base_keeps_its_dtype():
    lora_spec = LoraSpec(targets=(LoraTarget("x", 6, 5, None),), rank=2, alpha=2.0)
    method = methods.make("flora", lora_spec)
    kernel = jnp.full((6, 5), 0.5, jnp.bfloat16)
    server = method.init(cohorts.random_adapter(lora_spec, 0), {"x": kernel})
    cohort = make_cohort(lora_spec, [1, 2])
    start = method.broadcast(server, (), cohort)
    result = cohorts.train(start, cohorts.random_adapter(lora_spec, 1, 2))
    after = method.aggregate(server, (), cohort, start, cohorts.on_device(result))
    after = after.server.kernels["x"]
    assert after.dtype == jnp.bfloat16
    mean = np.mean(np.asarray(client_deltas(start, result)["x"], np.float64), axis=0)
    before = np.asarray(server.kernels["x"], np.float64)
    np.testing.assert_allclose(np.asarray(after, np.float64), before + mean, rtol=0.02, atol=0.01)
