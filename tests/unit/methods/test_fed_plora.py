"""Parallel one-rank modules: selection, owners, and no noise at the start of a round."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora import lora, methods
from fedjax_lora.core.types import LoRA
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods.fed_plora import select_modules
from tests._helpers import cohorts
from tests._helpers.cohorts import (
    CLIENTS,
    GLOBAL,
    PER_CLIENT,
    R,
    assert_trees_close,
    assert_trees_equal,
    client,
    client_deltas,
    make_cohort,
    play,
    server_delta,
)

MIXED = [1, 2, 3, 4, 2, 1]
MODES = ["random", "prefix", "round_robin"]


def sets(mode: str, rank, most: int, *, seed: int = 0, ids=None, round: int = 0) -> np.ndarray:
    cohort = cohorts.make_cohort(GLOBAL, rank, ids=ids, round=round)
    size = jax.random.uniform(jax.random.key(1), (most,))  # importance
    return np.asarray(select_modules(cohort, jax.random.key(seed), size, selection=mode))


def test_importance_selects_the_largest_modules():
    size = np.asarray(jax.random.uniform(jax.random.key(1), (8,)))
    for row, r in zip(sets("importance", [1, 3, 8], 8), [1, 3, 8], strict=True):
        np.testing.assert_array_equal(np.flatnonzero(row), np.sort(np.argsort(-size)[:r]))


# --------------------------------------------------------------------------------------- selection


@given(
    rank=st.lists(st.integers(1, 8), min_size=6, max_size=6),
    seed=st.integers(0, 2**31 - 1),
    round=st.integers(0, 10_000),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("mode", MODES)
def test_each_client_trains_as_many_modules_as_its_rank(
    mode: str, rank: list, seed: int, round: int
):
    """As a mask there can be no repeats; a client of full rank trains everything."""
    chosen = sets(mode, rank, 8, seed=seed, round=round)
    np.testing.assert_array_equal(chosen.sum(axis=1), rank)


def test_random_modules_are_chosen_equally_often():
    """Frequencies tend to r/R, and those of pairs to r(r-1) / R(R-1); no two clients alike."""
    most, draws = 6, 4000
    rank = np.array([1, 2, 4], np.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(draws))
    cohort = cohorts.make_cohort(GLOBAL, rank)
    select = lambda key: select_modules(cohort, key, jnp.zeros(most), selection="random")  # noqa: E731
    chosen = np.asarray(jax.jit(jax.vmap(select))(keys))  # [draws, client, R]

    def expect(observed: np.ndarray, p: float) -> None:
        deviation = np.sqrt(p * (1 - p) / draws)
        assert np.max(np.abs(observed - p)) < 5 * deviation

    for n, r in enumerate(rank):
        expect(chosen[:, n].mean(axis=0), r / most)
        pairs = np.einsum("dj,dk->jk", chosen[:, n].astype(float), chosen[:, n]) / draws
        p = r * (r - 1) / (most * (most - 1))
        if r > 1:
            expect(pairs[~np.eye(most, dtype=bool)], p)
    # Independent of each other: jointly as often as the product says.
    expect(np.mean(chosen[:, 1] & chosen[:, 2], axis=0), 2 / 6 * 4 / 6)


def test_random_modules_depend_only_on_client_and_key():
    """Neither its position in the cohort nor the other clients change what a client trains."""
    rank = [2] * 6
    chosen = sets("random", rank, 8, ids=[10, 11, 12, 13, 14, 15])
    moved = sets("random", rank, 8, ids=[15, 3, 10, 99, 12, 4])
    np.testing.assert_array_equal(moved[[2, 4, 0]], chosen[[0, 2, 5]])
    assert len({tuple(row) for row in chosen.tolist()}) > 1
    assert np.any(sets("random", rank, 8, seed=1) != sets("random", rank, 8, seed=0))


@pytest.mark.parametrize(("rank", "most"), [(1, 8), (2, 8), (3, 8), (5, 8), (8, 8)])
def test_round_robin_covers_all_modules(rank: int, most: int):
    """In ceil(R / r) rounds every client has trained every module, wherever it begins."""
    turns = math.ceil(most / rank)
    for first in (0, 3, 1000):
        seen = np.zeros((4, most), int)
        for round in range(first, first + turns):
            seen += sets("round_robin", [rank] * 4, most, round=round)
        assert np.all(seen >= 1)
    # Over R rounds all modules equally often: exactly r times.
    total = sum(sets("round_robin", [rank] * 4, most, round=t).astype(int) for t in range(most))
    np.testing.assert_array_equal(total, rank)


def test_round_robin_starts_clients_at_different_modules():
    chosen = sets("round_robin", [2, 2, 2, 2], 8)
    assert len({tuple(row) for row in chosen.tolist()}) == 4


def test_prefix_selects_the_first_modules():
    np.testing.assert_array_equal(
        sets("prefix", [1, 3], 4, seed=5, round=9), [[1, 0, 0, 0], [1, 1, 1, 0]]
    )


def test_selection_is_shared_by_all_layers_or_drawn_per_layer():
    deep = LoraSpec(
        targets=(
            LoraTarget("layers/q", 4, 4, (True,) * 8),
            LoraTarget("layers/v", 4, 4, (True,) * 8),
        ),
        rank=R,
        alpha=4.0,
    )
    cohort = make_cohort(deep, [1, 2, 3, 4, 2, 1])
    server = methods.ServerState(cohorts.random_adapter(deep, 0), {})
    distinct = {}
    for indices in ("global", "layer"):
        method = methods.make(f"fed_plora(indices={indices!r})", deep)
        trainable = method.broadcast(server, (), cohort).trainable
        masks = np.stack([np.asarray(trainable[p].b)[..., 0] for p in trainable], axis=1)
        masks = np.broadcast_to(masks, (6, 2, 8, R))
        np.testing.assert_array_equal(
            masks.sum(-1), np.array(MIXED)[:, None, None] * np.ones((2, 8))
        )
        distinct[indices] = [len(np.unique(m.reshape(-1, R), axis=0)) for m in masks]
    assert distinct["global"] == [1] * 6
    # 16 draws of one of 4, of 6, of 4 sets; one set only where everything is trained.
    assert [n > 1 for n in distinct["layer"]] == [True, True, True, False, True, True]


def test_broadcast_and_aggregate_select_the_same_modules():
    """What was trainable is what is averaged: a change anywhere else never reaches the server."""
    server = methods.ServerState(cohorts.random_adapter(GLOBAL, 0), {})
    for spec in ("fed_plora", "fed_plora(indices='layer')", "fed_plora(selection='round_robin')"):
        method, fn = cohorts.compiled(spec, GLOBAL)
        cohort = make_cohort(GLOBAL, MIXED, round=5, seed=8)
        start = method.broadcast(server, (), cohort)
        mask = jax.device_get(start.trainable)
        noise = cohorts.random_adapter(GLOBAL, 1, CLIENTS)
        elsewhere = jax.tree.map(
            lambda x, m, d: np.asarray(x) + np.where(m, np.float32(0), d),
            start.adapter,
            mask,
            noise,
        )
        after = fn(server, (), cohort, start, elsewhere).server.adapter
        # No client changed its own modules, so the mean over owners is the server's value.
        assert_trees_close(after, jax.tree.map(jnp.asarray, server.adapter), 1e-6)


# --------------------------------------------------------------------------------------- the round


@pytest.mark.parametrize("lora_spec", [GLOBAL, PER_CLIENT], ids=["alpha/R", "alpha/r"])
@pytest.mark.parametrize("mode", MODES)
def test_every_client_starts_from_the_global_model(mode: str, lora_spec: LoraSpec):
    """No initialization noise: effective weights equal the server's bit for bit, for any set."""
    server = methods.ServerState(cohorts.random_adapter(lora_spec, 0), {})
    method = methods.make(f"fed_plora(selection={mode!r})", lora_spec)
    start = method.broadcast(server, (), make_cohort(lora_spec, MIXED))
    deltas = client_deltas(start, start.adapter)
    for n in range(CLIENTS):
        assert_trees_equal(client(deltas, n), server_delta(lora_spec, server))


def test_truncating_methods_do_not_start_from_the_global_model():
    """Their initialization noise is the product of the components cut off."""
    server = methods.ServerState(cohorts.random_adapter(GLOBAL, 0), {})
    for spec in ("zero_padding", "masked_mean", "replication", "hetlora"):
        method, _ = cohorts.compiled(spec, GLOBAL)
        start = method.broadcast(server, (), make_cohort(GLOBAL, MIXED))
        deltas = client_deltas(start, start.adapter)
        for path, pair in server.adapter.items():
            for n, r in enumerate(MIXED):
                noise = np.asarray(server_delta(GLOBAL, server)[path]) - np.asarray(deltas[path][n])
                cut = 1.5 * pair.a[..., r:].astype(np.float64) @ pair.b[..., r:, :]
                np.testing.assert_allclose(noise, cut, atol=1e-4)
                assert (np.linalg.norm(noise) > 1) == (r < R)


@given(
    rank=st.lists(st.integers(1, R), min_size=6, max_size=6),
    weight=st.lists(st.sampled_from([0.0, 1.0, 2.5, 40.0]), min_size=6, max_size=6).filter(any),
)
@settings(max_examples=15, deadline=None)
def test_prefix_selection_equals_the_masked_mean(rank: list, weight: list):
    server = methods.ServerState(cohorts.random_adapter(GLOBAL, 0), {})
    cohort = make_cohort(GLOBAL, rank, weight)
    ours = play("fed_plora(selection='prefix')", GLOBAL, cohort, server=server)
    _, fn = cohorts.compiled("masked_mean(weights='uniform')", GLOBAL)
    masked = fn(server, (), cohort, ours.start, ours.result)
    assert_trees_close(ours.outcome.server.adapter, masked.server.adapter, 1e-6)


def test_aggregation_noise_is_bounded_by_products_of_deviations():
    """Two clients with a = b = +3 and -3: the mean is 0, the mean product 9.

    A sum of the factors' deviations, 3 + 3, does not bound that; the mean of products of the
    deviations, 9, does, and for many components their norms.
    """
    one = LoraSpec(targets=(LoraTarget("x", 1, 1, None),), rank=1, alpha=1.0)
    server = methods.ServerState({"x": LoRA(jnp.zeros((1, 1)), jnp.zeros((1, 1)))}, {})
    cohort = make_cohort(one, [1, 1])
    method = methods.make("fed_plora", one)
    start = method.broadcast(server, (), cohort)
    x = jnp.array([3.0, -3.0]).reshape(2, 1, 1)
    after = method.aggregate(server, (), cohort, start, {"x": LoRA(x, x)}).server
    noise = 9.0 - float(server_delta(one, after)["x"][0, 0])
    assert noise == 9.0
    assert noise > 3 + 3

    server = methods.ServerState(cohorts.random_adapter(GLOBAL, 0), {})
    cohort = make_cohort(GLOBAL, [R] * CLIENTS)
    played = play("fed_plora", GLOBAL, cohort, server=server)
    for path, delta in client_deltas(played.start, played.result).items():
        noise = np.mean(delta, axis=0) - np.asarray(
            server_delta(GLOBAL, played.outcome.server)[path]
        )
        a, b = (np.asarray(x, np.float64) for x in played.result[path])
        spread_a = np.linalg.norm(a - a.mean(0), axis=-2)  # [c, (L,) R]
        spread_b = np.linalg.norm(b - b.mean(0), axis=-1)
        bound = GLOBAL.server_scale * np.mean(spread_a * spread_b, axis=0).sum(-1)
        size = np.linalg.norm(noise, axis=(-2, -1))
        assert np.all(size <= bound * (1 + 1e-5) + 1e-6)
        adapted = bound > 0
        assert np.all(size[adapted] > 0.01 * bound[adapted])


def test_server_scale_is_used_instead_of_client_scales():
    """A client holds all modules, so the server's scale is the only consistent one."""
    server = methods.ServerState(cohorts.random_adapter(GLOBAL, 0), {})
    for rule, scale in (("alpha/r", 1.5), ("alpha/sqrt(r)", 3.0)):
        lora_spec = LoraSpec(targets=GLOBAL.targets, rank=R, alpha=6.0, scale_rule=rule)
        start = methods.make("fed_plora", lora_spec).broadcast(
            server, (), make_cohort(lora_spec, MIXED)
        )
        gains = np.concatenate([np.unique(g) for g in start.gain.values()])
        assert set(gains) == {0.0, scale}


def test_gain_of_every_component_is_the_server_scale():
    start = methods.make("fed_plora", GLOBAL).broadcast(
        methods.ServerState(cohorts.random_adapter(GLOBAL, 0), {}), (), make_cohort(GLOBAL, MIXED)
    )
    want = lora.uniform_gain(GLOBAL)
    for n in range(CLIENTS):
        assert_trees_equal(client(start.gain, n), want)
