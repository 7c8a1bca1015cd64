"""Initialization and aggregation noise against dense float64 products and the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, methods
from fedjax_lora.core.types import LoRA
from fedjax_lora.federated.diagnostics import (
    AggregationNoise,
    aggregation_noise,
    initialization_noise,
)
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Cohort, ServerState
from tests._helpers import cohorts, problems
from tests._helpers.cohorts import GLOBAL, PER_CLIENT, SITES, R, make_cohort, play
from tests._helpers.mixed_ranks import WEIGHT, cohort_for

every_method = pytest.mark.parametrize("name", methods.METHODS)

_init = jax.jit(initialization_noise, static_argnums=0)
_aggregation = jax.jit(aggregation_noise, static_argnums=0, static_argnames="weights")


def server_of(spec: str, lora_spec: LoraSpec = GLOBAL) -> ServerState:
    return cohorts.make_server(cohorts.compiled(spec, lora_spec)[0], lora_spec)


def measured(
    cohort: Cohort,
    server: ServerState,
    played: cohorts.Played,
    lora_spec: LoraSpec = GLOBAL,
    **options,
) -> AggregationNoise:
    got = _aggregation(lora_spec, server, cohort, *played[:2], played.outcome.server, **options)
    return jax.tree.map(float, got)


def product(pair: LoRA, gain) -> np.ndarray:
    a, b, gain = (np.asarray(x, np.float64) for x in (*pair, gain))
    return (a * gain[..., None, :]) @ b


def global_models(lora_spec: LoraSpec, server: ServerState) -> dict[str, np.ndarray]:
    """Kernel (0 if unchanged by the method) and adapter."""
    gain = lora.uniform_gain(lora_spec)
    return {
        path: product(pair, gain[path]) + np.asarray(server.kernels.get(path, 0.0), np.float64)
        for path, pair in server.adapter.items()
    }


def client_models(server: ServerState, start: methods.ClientInit, adapter) -> dict[str, np.ndarray]:
    return {
        path: product(pair, start.gain[path])
        + np.asarray(server.kernels.get(path, 0.0), np.float64)[None]
        for path, pair in adapter.items()
    }


def distance(one: dict, other: dict) -> float:
    return np.sqrt(sum(np.sum((one[path] - other[path]) ** 2) for path in one))


def size(model: dict) -> float:
    return np.sqrt(sum(np.sum(x**2) for x in model.values()))


def mean_model(models: dict, weight) -> dict[str, np.ndarray]:
    p = np.asarray(weight, np.float64) / np.sum(weight)
    here = p > 0
    return {path: np.tensordot(p[here], x[here], axes=1) for path, x in models.items()}


# ------------------------------------------------------------------------------- dense products


@pytest.mark.parametrize(
    "lora_spec",
    [
        pytest.param(GLOBAL, marks=pytest.mark.slow, id="alpha/R"),
        pytest.param(PER_CLIENT, id="alpha/r"),
    ],
)
@pytest.mark.parametrize("name", problems.one_of_each_kind({*problems.KINDS, "hetlora", "fslora"}))
def test_noise_equals_its_definition_on_dense_products(name: str, lora_spec: LoraSpec):
    cohort = cohort_for(name, lora_spec)
    server = server_of(name, lora_spec)
    played = play(name, lora_spec, cohort, server=server)
    before, after = (global_models(lora_spec, s) for s in (server, played.outcome.server))
    begun = client_models(server, played.start, played.start.adapter)
    ideal = mean_model(client_models(server, played.start, played.result), cohort.weight)

    got = measured(cohort, server, played, lora_spec)
    tolerance = 1e-6 * (size(before) + size(ideal))
    assert got.noise == pytest.approx(distance(after, ideal), abs=tolerance)
    assert got.ideal == pytest.approx(distance(ideal, before), abs=tolerance)
    assert got.ideal > 1

    init = np.asarray(_init(lora_spec, server, played.start))
    want = [distance({p: x[k] for p, x in begun.items()}, before) for k in range(len(init))]
    np.testing.assert_allclose(init, want, rtol=0, atol=tolerance)


def test_ideal_mean_can_weigh_clients_equally():
    cohort = cohort_for("zero_padding")
    server = server_of("zero_padding")
    played = play("zero_padding", GLOBAL, cohort, server=server)
    trained = client_models(server, played.start, played.result)
    ideal = mean_model(trained, np.asarray(cohort.weight) > 0)
    want = distance(global_models(GLOBAL, played.outcome.server), ideal)
    assert measured(cohort, server, played, weights="uniform").noise == pytest.approx(want)
    assert measured(cohort, server, played).noise != pytest.approx(want, rel=1e-2)


# --------------------------------------------------------------------------- initialization noise


def test_trained_coefficients_count_towards_initialization_noise():
    """Beside a factor or in it."""
    server, cohort = server_of("fedrora"), cohort_for("fedrora")
    method = methods.make("fedrora", GLOBAL)
    apart, folded = (
        m.broadcast(server, method.init_clients(len(cohort.rank)), cohort)
        for m in (method, cohorts.in_two_factors(method))
    )
    assert apart.coefficients != () == folded.coefficients
    noise = _init(GLOBAL, server, apart)
    assert np.min(noise[np.asarray(cohort.rank) < R]) > 0.1
    # Of a client of full rank it is rounding, of models as large as the others' noise.
    want = _init(GLOBAL, server, folded)
    np.testing.assert_allclose(noise, want, rtol=0, atol=2e-6 * np.max(want))


@pytest.mark.parametrize("spec", [s for s in cohorts.SPECS if s.startswith(("fed_plora", "flora"))])
def test_folding_and_merging_have_no_initialization_noise(spec: str):
    """Property 25: every client starts at the global model, exactly."""
    cohort = cohort_for(spec)
    server = server_of(spec)
    start = methods.make(spec, GLOBAL).broadcast(server, (), cohort)
    assert np.all(np.asarray(_init(GLOBAL, server, start)) == 0)


def test_initialization_noise_of_truncation_is_the_components_cut_off():
    cohort = make_cohort(GLOBAL, [1, 2, 3, 4])
    server = server_of("zero_padding")
    start = methods.make("zero_padding", GLOBAL).broadcast(server, (), cohort)
    got = np.asarray(_init(GLOBAL, server, start))
    gain = lora.uniform_gain(GLOBAL)
    for k, r in enumerate([1, 2, 3]):
        cut = {
            path: product(LoRA(pair.a[..., r:], pair.b[..., r:, :]), gain[path][..., r:])
            for path, pair in server.adapter.items()
        }
        assert got[k] == pytest.approx(size(cut), rel=1e-6)
    assert got[3] == 0
    assert np.all(np.diff(got) < 0)


def test_refactored_product_has_no_noise():
    """Up to the rounding of float32, not its square root."""
    cohort = make_cohort(GLOBAL, [R, R])
    server = server_of("fedit")
    start = methods.make("fedit", GLOBAL).broadcast(server, (), cohort)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(R, R)))[0]
    turned = {
        path: LoRA(
            jnp.asarray(np.asarray(p.a, np.float64) @ turn, jnp.float32),
            jnp.asarray(turn.T @ np.asarray(p.b, np.float64), jnp.float32),
        )
        for path, p in start.adapter.items()
    }
    got = np.asarray(_init(GLOBAL, server, start._replace(adapter=turned)))
    assert np.all(got <= 1e-6 * size(global_models(GLOBAL, server)))
    assert np.all(got > 0)


# ------------------------------------------------------------------------------ aggregation noise


def test_fedit_misses_the_covariance_of_the_factors():
    """Property 1: ``sum p a b - mean(a) mean(b) = sum p (a - mean(a)) (b - mean(b))``."""
    cohort = make_cohort(GLOBAL, [R] * 6, WEIGHT)
    server = server_of("fedit")
    played = play("fedit", GLOBAL, cohort, server=server)
    p = np.array(WEIGHT) / np.sum(WEIGHT)
    here = p > 0
    total = 0.0
    centred = lambda x: x - np.tensordot(p[here], x, axes=1)  # noqa: E731
    for pair in played.result.values():
        a, b = (centred(x[here].astype(np.float64)) for x in pair)
        total += np.sum((GLOBAL.server_scale * np.tensordot(p[here], a @ b, axes=1)) ** 2)
    assert measured(cohort, server, played).noise == pytest.approx(np.sqrt(total), rel=1e-6)


def test_zero_padding_dilutes_a_single_owners_component_quadratically():
    """Property 10: in the ideal mean it has weight ``1/K``, in the product of means ``1/K**2``.

    All clients have the same first component, which therefore loses nothing.
    """
    clients = 5
    cohort = make_cohort(GLOBAL, [1] * (clients - 1) + [R])
    server = server_of("zero_padding")
    start = methods.make("zero_padding", GLOBAL).broadcast(server, (), cohort)
    _, aggregate = cohorts.compiled("zero_padding", GLOBAL)
    outcome = aggregate(server, (), cohort, start, start.adapter)
    got = measured(cohort, server, cohorts.Played(start, start.adapter, outcome))
    rest = {
        path: GLOBAL.server_scale
        * np.asarray(p.a[..., 1:], np.float64)
        @ np.asarray(p.b[..., 1:, :], np.float64)
        for path, p in server.adapter.items()
    }
    assert got.noise == pytest.approx((1 / clients - 1 / clients**2) * size(rest), rel=1e-6)


def test_flora_has_no_aggregation_noise_beyond_kernel_rounding():
    cohort = cohort_for("flora")
    server = server_of("flora")
    played = play("flora", GLOBAL, cohort, server=server)
    got = measured(cohort, server, played)
    assert got.noise <= 2e-7 * (size(server.kernels) + got.ideal)


@pytest.mark.parametrize("spec", ["hlora", "flexlora"])
def test_aggregation_noise_of_svd_methods_is_the_truncated_spectrum(spec: str):
    """Property 16 (Eckart-Young), and none if there is nothing to truncate."""
    server = server_of(spec)
    for rank, weight in [((1, 2, 3, 4, 2, 1), WEIGHT), ((R,), [1.0])]:
        cohort = make_cohort(GLOBAL, rank, weight)
        played = play(spec, GLOBAL, cohort, server=server)
        ideal = mean_model(client_models(server, played.start, played.result), weight)
        tails = [np.linalg.svd(x, compute_uv=False)[..., R:] for x in ideal.values()]
        want = np.sqrt(sum(np.sum(tail**2) for tail in tails))
        noise = measured(cohort, server, played).noise
        assert noise == pytest.approx(want, abs=1e-6 * size(ideal))
        assert (want > 0.1 * size(ideal)) == (len(rank) > 1)


@every_method
def test_empty_cohort_has_no_noise(name: str):
    cohort = cohort_for(name)._replace(weight=jnp.zeros(6))
    server = server_of(name)
    played = play(name, GLOBAL, cohort, server=server)
    assert measured(cohort, server, played) == AggregationNoise(0.0, 0.0)


def test_test_targets_have_stacked_and_single_layers():
    """The tests above need thin and dense stacks, a left-out layer and an unstacked target."""
    assert any(s.layers is None for s in SITES) and any(not all(s.layers or ()) for s in SITES)
    thin = functools.partial(lambda k, s: k < min(s.inputs, s.outputs), 2 * R)
    assert {thin(s) for s in SITES} == {True, False}
