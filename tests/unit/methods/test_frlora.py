"""FRLoRA and the principal initialisation: it begins at the pretrained model and returns there."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora, methods
from fedjax_lora.core.types import LoRA
from tests._helpers import cohorts
from tests._helpers.cohorts import GLOBAL, R, assert_close, make_cohort


def test_the_adapter_has_the_leading_components_of_the_kernels():
    """Roots of the singular values in each factor; left-out layers keep their kernels."""
    kernels = cohorts.random_kernels(GLOBAL, 3)
    adapter, rest = lora.principal(GLOBAL, kernels)
    deltas = lora.deltas(adapter, lora.uniform_gain(GLOBAL))
    pairs, others = cohorts.matrices(GLOBAL, adapter), cohorts.dense(GLOBAL, rest)
    for name, W in cohorts.dense(GLOBAL, kernels).items():
        U, s, Vt = np.linalg.svd(W)
        left = W - U[:, :R] * s[:R] @ Vt[:R]
        np.testing.assert_allclose(others[name], left, rtol=0, atol=1e-5 * s[0])
        sizes = [np.linalg.norm(pairs[name].B, axis=0), np.linalg.norm(pairs[name].A, axis=1)]
        np.testing.assert_allclose(sizes, [np.sqrt(s[:R] / GLOBAL.server_scale)] * 2, rtol=1e-4)
    for path, kernel in kernels.items():
        assert_close(deltas[path] + rest[path], kernel, 1e-6)
    np.testing.assert_array_equal(rest["block/layers/query"][1], kernels["block/layers/query"][1])


def test_every_client_begins_at_the_pretrained_model_whatever_its_rank():
    kernels = cohorts.random_kernels(GLOBAL, 3)
    method = methods.make("frlora", GLOBAL)
    fresh = lora.init(GLOBAL, jax.random.key(0))
    server = method.init(fresh, kernels)
    start = method.broadcast(server, (), make_cohort(GLOBAL, [1, 2, R]))
    for path, model in cohorts.client_deltas(start, start.adapter).items():
        for client in model:
            assert_close(client + server.kernels[path], kernels[path], 1e-6)


def test_every_round_begins_with_the_same_factors():
    method, aggregate = cohorts.compiled("frlora", GLOBAL)
    server = cohorts.make_server(method, GLOBAL)
    cohort = make_cohort(GLOBAL, [R] * 3)
    start = method.broadcast(server, (), cohort)
    result = cohorts.train(start, cohorts.random_adapter(GLOBAL, 2, 3))
    after = aggregate(server, (), cohort, start, result).server
    cohorts.assert_trees_equal(after.adapter, jax.tree.map(jnp.asarray, server.adapter))
    mean = {p: LoRA(*(x.mean(0, dtype=np.float64) for x in pair)) for p, pair in result.items()}
    for path, pair in mean.items():
        moved = GLOBAL.server_scale * pair.a @ pair.b
        model = cohorts.server_delta(GLOBAL, after)[path] + after.kernels[path]
        adapted = slice(None) if path == "head/dense" else np.array([0, 2])
        assert_close(model[adapted], (moved + server.kernels[path])[adapted], 2e-6)
