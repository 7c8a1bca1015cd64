"""Averages of factors: the properties of each rule, on examples computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora import lora, methods
from fedjax_lora.core.types import LoRA
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods import Cohort
from tests._helpers import cohorts
from tests._helpers.cohorts import (
    CLIENTS,
    GLOBAL,
    R,
    assert_close,
    assert_trees_close,
    assert_trees_equal,
    client,
    client_deltas,
    make_cohort,
    play,
    server_delta,
)

WEIGHT = [30.0, 5.0, 11.0, 17.0, 80.0, 2.0]
PATHS = [target.path for target in GLOBAL.targets]

# Data only, nothing recompiles: examples are cheap.
many = settings(max_examples=25, deadline=None)
weights = st.lists(st.sampled_from([0.0, 1.0, 2.5, 7.0, 40.0]), min_size=6, max_size=6).filter(any)
ranks = st.lists(st.integers(1, R), min_size=6, max_size=6)


def aggregate(spec: str, cohort: Cohort, result: cohorts.Adapter, server: methods.ServerState):
    method, fn = cohorts.compiled(spec, GLOBAL)
    start = method.broadcast(server, (), cohort)
    return fn(server, (), cohort, start, result).server.adapter


def prefixed(cohort: Cohort, seed: int) -> cohorts.Adapter:
    """Random clients, zero beyond their rank."""
    mask = lora.factor_mask(lora.spread(GLOBAL, lora.prefix_mask(jnp.asarray(cohort.rank), R)))
    return jax.tree.map(
        lambda x, m: np.where(m, x, np.float32(0)),
        cohorts.random_adapter(GLOBAL, seed, CLIENTS),
        jax.device_get(mask),
    )


def server(seed: int = 1) -> methods.ServerState:
    return methods.ServerState(cohorts.random_adapter(GLOBAL, seed), {})


def rows(adapter: cohorts.Adapter, which: slice) -> dict[str, LoRA]:
    return {
        path: LoRA(np.asarray(p.a)[..., which], np.asarray(p.b)[..., which, :])
        for path, p in adapter.items()
    }


# ------------------------------------------------------------------------------- plain averaging


def test_product_of_means_misses_the_covariance():
    """``sum p a b - (sum p a)(sum p b) = sum p (a - mean)(b - mean)``."""
    cohort = make_cohort(GLOBAL, [R] * CLIENTS, WEIGHT)
    played = play("fedit", GLOBAL, cohort, server=server())
    share = np.array(WEIGHT) / sum(WEIGHT)
    products = client_deltas(played.start, played.result)
    aggregated = server_delta(GLOBAL, played.outcome.server)
    for path in PATHS:
        a, b = (np.asarray(x, np.float64) for x in played.result[path])
        mean = lambda x: np.tensordot(share, x, 1)  # noqa: E731
        covariance = mean((a - mean(a)) @ (b - mean(b))) * GLOBAL.server_scale
        missed = mean(np.asarray(products[path], np.float64)) - np.asarray(aggregated[path])
        assert np.max(np.abs(covariance)) > 0.1
        assert_close(missed, covariance, 1e-5)


def test_no_covariance_if_one_factor_is_shared():
    """With ``a`` the same everywhere, averaging factors averages products."""
    cohort = make_cohort(GLOBAL, [R] * CLIENTS, WEIGHT)
    result = cohorts.random_adapter(GLOBAL, 0, CLIENTS)
    result = {p: LoRA(np.broadcast_to(x.a[:1], x.a.shape), x.b) for p, x in result.items()}
    after = aggregate("fedit", cohort, result, server())
    share = np.array(WEIGHT) / sum(WEIGHT)
    for path in PATHS:
        products = np.asarray(result[path].a, np.float64) @ np.asarray(result[path].b)
        assert_close(np.asarray(after[path].a) @ after[path].b, np.tensordot(share, products, 1))


# ----------------------------------------------------------------------------------- zero padding


def test_zero_padding_of_one_client_loses_nothing():
    """Padding leaves each client's product as it is; only the mean dilutes."""
    cohort = make_cohort(GLOBAL, [1, 2, 3, 4, 2, 1])
    padded = prefixed(cohort, 0)
    gain = {p: np.full((*x.a.shape[:-2], R), 1.5, np.float32) for p, x in padded.items()}
    for n, r in enumerate(cohort.rank):
        whole = lora.deltas(client(padded, n), cohorts.on_device(client(gain, n)))
        for path in PATHS:
            a, b = (x[n] for x in padded[path])
            assert_close(whole[path], 1.5 * a[..., :r].astype(np.float64) @ b[..., :r, :], 1e-6)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_one_owner_among_k_is_diluted_to_one_kth(count: int):
    """Factors shrink to x/K, their product to 1/K^2 of what the owner trained."""
    rank = [R] + [1] * (CLIENTS - 1)
    weight = [1.0] * count + [0.0] * (CLIENTS - count)
    cohort = make_cohort(GLOBAL, rank, weight)
    result = prefixed(cohort, 3)
    after = aggregate("zero_padding", cohort, result, server())
    for path in PATHS:
        owner = client(result[path], 0)
        assert_close(after[path].a[..., 1:], owner.a[..., 1:] / count, 1e-6)
        assert_close(after[path].b[..., 1:, :], owner.b[..., 1:, :] / count, 1e-6)
        high = np.asarray(after[path].a)[..., 1:] @ np.asarray(after[path].b)[..., 1:, :]
        want = owner.a[..., 1:].astype(np.float64) @ owner.b[..., 1:, :] / count**2
        assert_close(high, want, 1e-5)


@given(rank=ranks, weight=weights)
@many
def test_zero_padding_is_the_masked_mean_times_the_owners_share(rank: list, weight: list):
    """Row by row, in both factors, hence squared in the product."""
    cohort = make_cohort(GLOBAL, rank, weight)
    result, old = prefixed(cohort, 4), server()
    padded = aggregate("zero_padding", cohort, result, old)
    masked = aggregate("masked_mean", cohort, result, old)
    share = np.array(weight) / sum(weight)
    mass = share @ (np.array(rank)[:, None] > np.arange(R))
    mass[mass == 0] = 1.0  # no owner: the server's value, undiluted, in both
    for path in PATHS:
        assert_close(padded[path].a, np.asarray(masked[path].a) * mass, 1e-6)
        assert_close(padded[path].b, np.asarray(masked[path].b) * mass[:, None], 1e-6)


# ------------------------------------------------------------------------------------ replication


def test_replication_copies_high_components_to_a_low_rank_client():
    """The low-rank client becomes (its 1, its 2, the other's 3, the other's 4) before the mean.

    So components 3 and 4 of the aggregate are the rank-4 client's, bit for bit; zero padding halves
    them.
    """
    cohort = make_cohort(GLOBAL, [4, 2, 1, 1, 1, 1], [1.0, 1.0, 0, 0, 0, 0])
    result = prefixed(cohort, 5)
    replicated = aggregate("replication", cohort, result, server())
    halved = aggregate("zero_padding", cohort, result, server())
    low, high = slice(0, 2), slice(2, 4)
    first, second = client(result, 0), client(result, 1)
    assert_trees_equal(rows(replicated, high), rows(first, high))
    assert_trees_equal(rows(halved, high), jax.tree.map(lambda x: x / 2, rows(first, high)))
    mean = jax.tree.map(lambda x, y: (x + y) / 2, rows(first, low), rows(second, low))
    assert_trees_close(rows(replicated, low), mean, 1e-6)
    assert_trees_close(rows(halved, low), mean, 1e-6)


@given(high=st.lists(st.booleans(), min_size=6, max_size=6), weight=weights, low=st.integers(1, 3))
@many
def test_replication_with_two_levels_is_the_masked_mean(high: list, weight: list, low: int):
    """Equal inner and outer weights: the mean over all, and above it over the high ranks."""
    cohort = make_cohort(GLOBAL, np.where(high, R, low), weight)
    result = prefixed(cohort, 6)
    for options in ("", "(weights='uniform')"):
        assert_trees_close(
            aggregate(f"replication{options}", cohort, result, server()),
            aggregate(f"masked_mean{options}", cohort, result, server()),
            1e-6,
        )


@given(rank=ranks, weight=weights)
@many
def test_replication_from_all_owners_is_the_masked_mean_for_any_ranks(rank: list, weight: list):
    cohort = make_cohort(GLOBAL, rank, weight)
    result = prefixed(cohort, 7)
    assert_trees_close(
        aggregate("replication", cohort, result, server()),
        aggregate("masked_mean", cohort, result, server()),
        1e-6,
    )


@pytest.mark.parametrize(
    ("spec", "rank", "why"),
    [
        ("replication(inner='uniform')", [4, 4, 1, 1, 1, 1], "uniform inside, by examples outside"),
        ("replication(donors='highest')", [4, 3, 1, 1, 1, 1], "three levels, highest donors only"),
    ],
)
def test_replication_is_not_the_masked_mean_otherwise(spec: str, rank: list, why: str):
    cohort = make_cohort(GLOBAL, rank, WEIGHT)
    result = prefixed(cohort, 8)
    ours = aggregate(spec, cohort, result, server())
    masked = aggregate("masked_mean", cohort, result, server())
    for path in PATHS:
        difference = np.abs(np.asarray(ours[path].b) - masked[path].b)[..., 1:3, :]
        assert np.max(difference) > 0.1, why


def test_high_components_follow_the_high_rank_clients_only():
    """Neither the number nor the data of the low-rank clients moves them; bit for bit here."""
    few = make_cohort(GLOBAL, [4, 4, 1, 1, 1, 1], [3, 5, 1, 0, 0, 0])
    more = make_cohort(GLOBAL, [4, 4, 1, 1, 1, 1], [3, 5, 1, 9, 50, 2])
    result = prefixed(few, 9)
    other = prefixed(few, 10)
    changed = jax.tree.map(lambda x, y: np.concatenate([x[:2], y[2:]]), result, other)
    high = slice(1, R)
    for spec in ("masked_mean", "replication"):
        first = rows(aggregate(spec, few, result, server()), high)
        assert_trees_close(rows(aggregate(spec, more, changed, server()), high), first, 1e-6)
    diluted = rows(aggregate("zero_padding", more, changed, server()), high)
    original = rows(aggregate("zero_padding", few, result, server()), high)
    for path in PATHS:
        assert np.max(np.abs(diluted[path].b)) < 0.5 * np.max(np.abs(original[path].b))


def test_without_a_high_rank_client_high_components_are_unchanged():
    """The server keeps what earlier rounds learned, instead of erasing it with zeros."""
    cohort = make_cohort(GLOBAL, [2, 1, 2, 2, 4, 4], [1, 2, 3, 4, 0, 0])
    old = server()
    for spec in ("replication", "replication(donors='highest')", "masked_mean", "zero_padding"):
        after = aggregate(spec, cohort, prefixed(cohort, 11), old)
        assert_trees_equal(rows(after, slice(2, R)), rows(old.adapter, slice(2, R)))


# ---------------------------------------------------------------------------------------- HetLoRA


def test_hetlora_weights_clients_by_the_norm_of_their_product():
    """Three times the product, three times the weight; examples only say who is present."""
    one = cohorts.random_adapter(GLOBAL, 12)
    size = np.array([1.0, 3.0, 2.0, 1.0, 4.0, 5.0], np.float32)
    result = {
        path: LoRA(
            np.stack([pair.a] * CLIENTS),
            np.stack([pair.b * s for s in size]),
        )
        for path, pair in one.items()
    }
    want = size[:4] / size[:4].sum()
    for weight in ([1, 1, 1, 1, 0, 0], [30, 5, 11, 17, 0, 0]):
        cohort = make_cohort(GLOBAL, [R] * CLIENTS, weight)
        after = aggregate("hetlora(gamma=1.0)", cohort, result, server())
        for path in PATHS:
            assert_close(after[path].a, one[path].a, 1e-6)  # weights sum to one
            assert_close(after[path].b, one[path].b * float(want @ size[:4]), 1e-6)


def test_hetlora_norm_is_per_client_or_per_layer():
    """One weight per client from all layers together, or one per layer and site."""
    one = cohorts.random_adapter(GLOBAL, 13)
    path, other = PATHS
    size = np.ones((CLIENTS, 3), np.float32)
    size[0, 2] = 100.0  # client 0 is loud in the last layer only
    b = one[path].b[None] * size[..., None, None]
    result = {path: LoRA(np.stack([one[path].a] * CLIENTS), b)}
    result[other] = LoRA(*(np.stack([x] * CLIENTS) for x in one[other]))
    cohort = make_cohort(GLOBAL, [R] * CLIENTS)
    layer = aggregate("hetlora(norm='layer', gamma=1.0)", cohort, result, server())
    whole = aggregate("hetlora(gamma=1.0)", cohort, result, server())
    by_layer = 100 / 105
    assert_close(layer[path].b[0], one[path].b[0], 1e-6)
    assert_close(layer[path].b[2], one[path].b[2] * (by_layer * 100 + (1 - by_layer)), 1e-5)
    norms = [
        np.linalg.norm(np.asarray(p.a, np.float64) @ p.b) ** 2 for p in (one[path], one[other])
    ]
    last = np.linalg.norm(np.asarray(one[path].a[2], np.float64) @ one[path].b[2]) ** 2
    quiet, loud = np.sqrt(sum(norms)), np.sqrt(sum(norms) + (100**2 - 1) * last)
    share = loud / (loud + 5 * quiet)
    assert_close(whole[path].b[2], one[path].b[2] * (share * 100 + 1 - share), 1e-5)
    assert_close(whole[path].b[0], one[path].b[0], 1e-6)


def test_hetlora_with_all_zero_adapters_weighs_equally():
    cohort = make_cohort(GLOBAL, [R] * CLIENTS, [1, 9, 1, 1, 0, 0])
    result = cohorts.random_adapter(GLOBAL, 14, CLIENTS)
    result = {path: LoRA(pair.a, 0 * pair.b) for path, pair in result.items()}
    after = aggregate("hetlora(gamma=1.0)", cohort, result, server())
    for path in PATHS:
        assert_close(after[path].a, np.mean(result[path].a[:4], axis=0), 1e-6)
        assert not np.any(after[path].b)


def shrinking(factor: float) -> tuple:
    """A cohort whose clients multiply component 3 of `b` by this, and what they return."""
    cohort, old = make_cohort(GLOBAL, [4, 4, 2, 4, 4, 4], [1, 1, 1, 0, 1, 1]), server()
    start = methods.make("hetlora", GLOBAL).broadcast(old, (), cohort)
    result = {p: LoRA(x.a, x.b.at[..., 3, :].multiply(factor)) for p, x in start.adapter.items()}
    return cohort, old, start, result


@pytest.mark.parametrize(
    ("options", "factor", "want"),
    [
        ("gamma=0.99", 0.5, [3, 3, 2, 4, 3, 3]),  # floor(0.99 * 4); rank 2 has not shrunk
        ("gamma=0.99", 1.0, [4, 4, 2, 4, 4, 4]),  # only if the tail has become smaller
        ("gamma=0.99", 2.0, [4, 4, 2, 4, 4, 4]),
        ("gamma=0.5", 0.5, [2, 2, 2, 4, 2, 2]),
        ("gamma=0.5, min_rank=3", 0.5, [3, 3, 2, 4, 3, 3]),
        ("gamma=1.0", 0.0, [4, 4, 2, 4, 4, 4]),  # never prunes
    ],
)
def test_hetlora_prunes_a_shrinking_tail(options: str, factor: float, want: list[int]):
    """Property 34; an absent client (the fourth) keeps its rank."""
    cohort, old, start, result = shrinking(factor)
    method = methods.make(f"hetlora({options})", GLOBAL)
    outcome = method.aggregate(old, (), cohort, start, result)
    np.testing.assert_array_equal(outcome.rank, want)


@pytest.mark.parametrize(
    ("gamma", "rank", "left"),
    [
        (0.7, 90, 63),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.58, 50, 29),
        (0.99, 100, 99),
        (1.0, 64, 64),
    ],
)
def test_hetlora_tail_begins_at_the_exact_fraction(gamma: float, rank: int, left: int):
    """Where the product of floating-point numbers falls just below a whole number."""
    one = LoraSpec(targets=(LoraTarget("x", 2, 3, None),), rank=rank, alpha=1.0)
    method = methods.make(f"hetlora(gamma={gamma!r}, penalty=1.0)", one)
    ones = cohorts.on_device(jax.tree.map(lambda x: np.ones(x.shape, np.float32), one.shapes()))
    assert method.penalty is not None
    tail = float(method.penalty(ones, jnp.int32(rank)))  # sqrt(2 n) sqrt(3 n) for n components
    assert tail == pytest.approx((rank - left) * 6**0.5, abs=1e-3)


def test_hetlora_penalty_is_the_size_of_the_tail():
    """``penalty * sum ||a_tail|| ||b_tail||``; 0 without a tail, and no NaN where `b` is zero."""
    one = cohorts.on_device(cohorts.random_adapter(GLOBAL, 15))
    method = methods.make("hetlora(gamma=0.5, penalty=0.1)", GLOBAL)
    assert method.penalty is not None
    want = 0.0
    for path, pair in one.items():
        layers = zip(*(x if x.ndim == 3 else x[None] for x in pair), strict=True)
        want += sum(np.linalg.norm(a[:, 2:]) * np.linalg.norm(b[2:]) for a, b in layers)
        assert path in PATHS
    assert float(method.penalty(one, jnp.int32(R))) == pytest.approx(0.1 * want, rel=1e-5)
    never = methods.make("hetlora(gamma=1.0)", GLOBAL)
    assert never.penalty is not None
    assert float(never.penalty(one, jnp.int32(R))) == 0.0
    fresh = {path: LoRA(pair.a, 0 * pair.b) for path, pair in one.items()}
    slope = jax.grad(lambda x: method.penalty(x, jnp.int32(R)))(fresh)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slope))


# ------------------------------------------------------------------- components without an owner


@pytest.mark.parametrize("name", ["zero_padding", "hetlora"])
def test_component_zeroed_in_both_factors_has_no_gradient(name: str):
    """Zero in both factors, so that neither has a gradient; a kept one has both."""
    low, high = (make_cohort(GLOBAL, [rank] * 6) for rank in (2, R))
    for empty in ("keep", "zero"):
        method = methods.make(f"{name}(empty={empty!r})", GLOBAL)
        old = server()
        start = method.broadcast(old, (), low)
        result = cohorts.on_device(prefixed(low, 16))
        after = method.aggregate(old, (), low, start, result).server
        again = method.broadcast(after, (), high)

        def loss(adapter, gain=again.gain):
            return sum(jnp.sum(jnp.sin(x + 1)) for x in lora.deltas(adapter, gain).values())

        slope = jax.grad(loss)(again.adapter)
        for path in PATHS:
            adapted = np.any(np.asarray(after.adapter[path].b) != 0, axis=(-2, -1))
            beyond = LoRA(slope[path].a[..., 2:], slope[path].b[..., 2:, :])
            for part, whole in zip(beyond, slope[path], strict=True):
                assert np.any(np.asarray(whole)[:, adapted] != 0)
                assert np.any(np.asarray(part)[:, adapted] != 0) == (empty == "keep")
            kept = LoRA(after.adapter[path].a[..., 2:], after.adapter[path].b[..., 2:, :])
            want = LoRA(old.adapter[path].a[..., 2:], old.adapter[path].b[..., 2:, :])
            if empty == "zero":
                want = jax.tree.map(np.zeros_like, want)
            cohorts.assert_trees_equal(kept, cohorts.on_device(want))


# ----------------------------------------------------------------------------------- own methods


def test_custom_averaging_rule_needs_one_function():
    """Weights per client, or per client and site; components without an owner stay."""

    def last_owner(lora_spec: LoraSpec) -> methods.Method:
        def weigh(cohort, start, result):
            own = methods.owners(cohort, lora_spec.rank)
            index = jnp.arange(own.shape[0])[:, None]
            last = jnp.max(jnp.where(own, index, -1), axis=0, keepdims=True)
            return {p: (index == last).astype(jnp.float32) for p in result}

        return methods.averaging(lora_spec, weigh, name="last_owner")

    method = last_owner(GLOBAL)
    cohort = make_cohort(GLOBAL, [3, 2, 1, 2, 1, 4], [1, 1, 1, 1, 1, 0])
    result, old = prefixed(cohort, 15), server()
    start = method.broadcast(old, (), cohort)
    after = method.aggregate(old, (), cohort, start, cohorts.on_device(result)).server.adapter
    for path in PATHS:
        for j, owner in enumerate([4, 3, 0]):
            np.testing.assert_array_equal(
                after[path].b[..., j, :], result[path].b[owner, ..., j, :]
            )
            np.testing.assert_array_equal(after[path].a[..., j], result[path].a[owner, ..., j])
        np.testing.assert_array_equal(after[path].b[..., 3, :], old.adapter[path].b[..., 3, :])
