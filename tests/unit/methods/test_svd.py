"""Mean of products, factored again: exact, optimal, nested, and never the transpose."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import methods
from fedjax_lora.core.types import LoRA
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods.svd import refactor, weighted_stack
from tests._helpers import cohorts, oracles
from tests._helpers.cohorts import (
    CLIENTS,
    GLOBAL,
    PER_CLIENT,
    R,
    assert_close,
    assert_trees_close,
    client,
    client_deltas,
    make_cohort,
    method_name,
    play,
    server_delta,
)

MIXED = [1, 2, 3, 4, 2, 1]
WEIGHT = [30.0, 5.0, 11.0, 17.0, 80.0, 2.0]
SINGULAR = [s for s in cohorts.SPECS if method_name(s) in {"hlora", "flexlora"}]
SCALE = GLOBAL.server_scale


def round_of(spec: str, rank=MIXED, weight=WEIGHT, lora_spec=GLOBAL) -> tuple:
    """A round, the server's pairs after it, and the mean products it should have factored."""
    method, _ = cohorts.compiled(spec, GLOBAL)
    server = cohorts.make_server(method, GLOBAL)
    cohort = make_cohort(lora_spec, rank, weight)  # a client's scale is data
    played = play(spec, GLOBAL, cohort, server=server)
    round = cohorts.oracle_round(spec, lora_spec, server, cohort, played)
    kind = "uniform" if "uniform" in spec else "examples"
    means = {name: oracles.mean_of_products(round, name, kind) for name in round.old}
    return played, cohorts.matrices(lora_spec, played.outcome.server.adapter), means


@pytest.mark.parametrize("spec", SINGULAR)
def test_truncation_error_is_the_discarded_singular_values(spec: str):
    """``||M - a_r b_r||_F^2 = sum_{j > r} sigma_j^2`` for every r the server holds."""
    _, pairs, means = round_of(spec)
    for name, M in means.items():
        s = np.linalg.svd(M, compute_uv=False)
        for r in range(R + 1):
            B, A = pairs[name].B[:, :r], pairs[name].A[:r]
            error = np.linalg.norm(M - SCALE * B @ A)
            assert abs(error - np.sqrt(np.sum(s[r:] ** 2))) < 1e-5 * s[0]


def test_no_other_matrix_of_that_rank_is_closer():
    """Compared with other methods' results, random matrices and alternating least squares."""
    _, pairs, means = round_of("hlora")
    rng = np.random.default_rng(0)
    rivals = ["zero_padding", "hetlora", "masked_mean", "replication", "fed_plora"]
    others = [round_of(spec)[1] for spec in rivals]
    for name, M in means.items():
        for r in range(1, R + 1):
            if r == min(M.shape):
                continue  # nothing is discarded: every method may be exact
            best = np.linalg.norm(M - SCALE * pairs[name].B[:, :r] @ pairs[name].A[:r])
            for other in others:
                rival = SCALE * other[name].B[:, :r] @ other[name].A[:r]
                assert np.linalg.norm(M - rival) > best * (1 + 1e-3)
            A = rng.normal(size=(r, M.shape[1]))
            for step in range(200):
                B = np.linalg.lstsq(A.T, M.T, rcond=None)[0].T
                A = np.linalg.lstsq(B, M, rcond=None)[0]
                if step == 0:
                    assert np.linalg.norm(M - B @ A) > best * (1 + 1e-3)
            als = np.linalg.norm(M - B @ A)
            assert best * (1 - 1e-6) <= als  # and it does come as close as ours
            assert als < best * (1 + 1e-2)


@pytest.mark.parametrize("spec", SINGULAR)
def test_full_server_rank_reproduces_the_mean_exactly(spec: str):
    """Where R is the rank of the mean product, nothing is lost at all."""
    _, pairs, means = round_of(spec)
    small = pairs["head/dense"]
    assert_close(SCALE * small.B @ small.A, means["head/dense"], 2e-6)
    _, pairs, means = round_of(spec, [1, 2, 4, 4, 4, 4], [1, 1, 0, 0, 0, 0])
    for name, M in means.items():  # rank 1 + 2 < R
        assert np.linalg.matrix_rank(M, tol=1e-8) == 3
        assert_close(SCALE * pairs[name].B @ pairs[name].A, M, 2e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_the_rank_of_the_mean_is_at_most_the_sum_of_ranks(count: int):
    """Singular values beyond it are zero to rounding: the factor that carries them vanishes."""
    weight = [1.0] * count + [0.0] * (CLIENTS - count)
    _, pairs, _ = round_of("hlora", [1, 2, 4, 4, 4, 4], weight)
    for pair in pairs.values():
        size = np.linalg.norm(pair.A, axis=1)  # carries sigma
        total = [1, 3][count - 1]
        assert np.all(size[:total] > 1e-2 * size[0])
        assert np.all(size[total:] < 1e-5 * size[0])


@pytest.mark.parametrize("spec", SINGULAR)
@pytest.mark.parametrize("lora_spec", [GLOBAL, PER_CLIENT], ids=["alpha/R", "alpha/r"])
def test_each_client_starts_from_its_truncated_svd(spec: str, lora_spec: LoraSpec):
    """Nested, and with the client's own scale applied once: ``s_k a b`` is the truncation."""
    played, _, means = round_of(spec, lora_spec=lora_spec)
    server = played.outcome.server
    method, _ = cohorts.compiled(spec, GLOBAL)
    start = method.broadcast(server, (), make_cohort(lora_spec, MIXED, WEIGHT))
    deltas = client_deltas(start, start.adapter)
    for n, r in enumerate(MIXED):
        mine = cohorts.dense(lora_spec, client(deltas, n))
        for name, M in means.items():
            U, s, Vt = np.linalg.svd(M, full_matrices=False)
            gap = (s[r - 1] - s[r]) / s[0] if r < len(s) else 1.0
            assert_close(mine[name], U[:, :r] * s[:r] @ Vt[:r], 2e-6 / min(gap, 1.0), name)


def test_split_of_singular_values_does_not_change_the_product():
    """Three splits, one update; what differs is the size of the factors."""
    server = cohorts.make_server(methods.make("hlora", GLOBAL), GLOBAL)
    cohort = make_cohort(GLOBAL, MIXED, WEIGHT)
    outcomes = {
        sigma: play(
            f"hlora(sigma={sigma!r})" if sigma != "a" else "hlora", GLOBAL, cohort, server=server
        )
        for sigma in ("a", "b", "both")
    }
    deltas = {s: server_delta(GLOBAL, p.outcome.server) for s, p in outcomes.items()}
    for one, other in itertools.combinations(deltas, 2):
        assert_trees_close(deltas[one], deltas[other], 2e-6)
    pairs = {s: cohorts.matrices(GLOBAL, p.outcome.server.adapter) for s, p in outcomes.items()}
    for name in pairs["a"]:
        sizes = {
            s: (np.linalg.norm(x[name].A, axis=1), np.linalg.norm(x[name].B, axis=0))
            for s, x in pairs.items()
        }
        sigma = sizes["a"][0]
        np.testing.assert_allclose(sizes["a"][1], 1, rtol=1e-5)
        np.testing.assert_allclose(sizes["b"][0], 1, rtol=1e-5)
        np.testing.assert_allclose(sizes["b"][1], sigma, rtol=1e-5)
        np.testing.assert_allclose(sizes["both"][0], sizes["both"][1], rtol=1e-5)
        np.testing.assert_allclose(sizes["both"][0] ** 2, sigma, rtol=1e-5)
    plain = play("flexlora", GLOBAL, cohort, server=server).outcome.server
    assert_trees_close(plain.adapter, outcomes["b"].outcome.server.adapter, 1e-6)


@pytest.mark.parametrize("spec", ["hlora", "hlora(sigma='both')", "flexlora"])
def test_product_is_not_decomposed_as_its_transpose(spec: str):
    """On a square layer: what reads input 0 and writes output 2 keeps doing that."""
    path = GLOBAL.targets[0].path
    method, fn = cohorts.compiled(spec, GLOBAL)
    server = cohorts.make_server(method, GLOBAL)
    cohort = make_cohort(GLOBAL, [1] * CLIENTS)
    start = method.broadcast(server, (), cohort)
    result = jax.tree.map(np.zeros_like, jax.device_get(start.adapter))
    result[path].a[:, 0, 0, 0] = 3.0
    result[path].b[:, 0, 0, 2] = 5.0
    after = fn(server, (), cohort, start, result).server
    x = jnp.zeros(26).at[0].set(1.0)
    y = x @ server_delta(GLOBAL, after)[path][0]
    np.testing.assert_allclose(y, np.eye(26)[2] * 15 * SCALE, rtol=1e-5, atol=1e-5)
    first = cohorts.client(after.adapter[path], 0)
    assert np.argmax(np.abs(first.a[:, 0])) == 0
    assert np.argmax(np.abs(first.b[0])) == 2


@pytest.mark.parametrize(("spec", "kept"), [("hlora", 0.25), ("flexlora", 0.25), ("raflora", 1.0)])
def test_repeated_rounds_without_training_shrink_high_components(spec: str, kept: float):
    """Rank collapse: the owners' share per round. One client of rank 8 among four of rank 2.

    Spectrum 8, 7, 6, ..., 1: after a round 8, 7, 6/4, ..., after two 8, 7, 6/16, ...; raFLoRA
    keeps it as it is.
    """
    lora_spec = LoraSpec(targets=(LoraTarget("square", 12, 10, None),), rank=8, alpha=8.0)
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 8)))[0] for n in (12, 10))
    s = np.arange(8, 0, -1.0)
    server = methods.ServerState({"square": cohorts.pair(u * s, v.T)}, {})
    method = methods.make(spec, lora_spec)
    aggregate = jax.jit(method.aggregate)
    cohort = make_cohort(lora_spec, [2, 2, 2, 8])
    for _ in range(2):
        start = method.broadcast(server, (), cohort)
        server = aggregate(server, (), cohort, start, start.adapter).server
        s[2:] *= kept
        a, b = server.adapter["square"]
        size = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(size, s, rtol=1e-4)


def test_low_rank_clients_do_not_shrink_components_they_lack():
    """raFLoRA's high partition; FlexLoRA's shrinks by the share of its owners."""
    lora_spec = LoraSpec(targets=(LoraTarget("square", 12, 10, None),), rank=8, alpha=8.0)
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 8)))[0] for n in (12, 10))
    one = cohorts.pair(u * np.arange(8, 0, -1.0), v.T)
    tail = {}
    for spec in ("raflora", "flexlora"):
        method = methods.make(spec, lora_spec)
        for low in (1, 7):
            cohort = make_cohort(lora_spec, [8] + [2] * low)
            start = method.broadcast(methods.ServerState({"square": one}, {}), (), cohort)
            after = method.aggregate(
                methods.ServerState({"square": one}, {}), (), cohort, start, start.adapter
            ).server
            a, b = after.adapter["square"]
            tail[spec, low] = np.linalg.norm(np.asarray(a[:, 2:]) @ np.asarray(b[2:]))
    assert tail["raflora", 7] == pytest.approx(tail["raflora", 1], rel=1e-5)
    assert tail["flexlora", 7] == pytest.approx(tail["flexlora", 1] / 4, rel=1e-5)


def test_raflora_with_equal_ranks_is_flexlora():
    server = cohorts.make_server(methods.make("flexlora", GLOBAL), GLOBAL)
    cohort = make_cohort(GLOBAL, [3] * CLIENTS, WEIGHT)
    ours, want = (
        play(spec, GLOBAL, cohort, server=server).outcome.server
        for spec in ("raflora(sigma='b', empty='drop')", "flexlora")
    )
    assert_trees_close(ours.adapter, want.adapter, 1e-6)


def test_refactor_divides_by_the_scale_once():
    stacks = cohorts.pair(np.eye(5)[:, :2] * [6.0, 2.0], np.eye(4)[:2])
    for sigma in ("a", "b", "both"):
        a, b = refactor(stacks, 2, 0.5, sigma)
        np.testing.assert_allclose(0.5 * a @ b, stacks.a @ stacks.b, atol=1e-6)


def test_stacked_factors_are_weighted_in_one_factor_only():
    """Shares in both factors would square them."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 2, 4))
    share, gain = np.array([0.5, 0.25, 0.25]), np.full((3, 2), 2.0)
    wide = weighted_stack(
        cohorts.pair(a, b), jnp.asarray(gain, jnp.float32), jnp.asarray(share, jnp.float32)
    )
    assert wide.a.shape == (5, 6) and wide.b.shape == (6, 4)
    assert_close(wide.a @ wide.b, np.einsum("c,cir,cro->io", 2 * share, a, b), 1e-6)
    assert isinstance(wide, LoRA)
