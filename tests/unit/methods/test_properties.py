"""Properties that every registered method has."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_lora import lora, methods
from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import LoRA
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods import AggregateResult, ClientInit, Cohort, ServerState
from tests._helpers import cohorts, oracles, problems
from tests._helpers.cohorts import (
    CLIENTS,
    EXACT,
    GLOBAL,
    PER_CLIENT,
    SPECS,
    R,
    assert_close,
    assert_trees_close,
    assert_trees_equal,
    client,
    client_deltas,
    make_cohort,
    method_name,
    play,
    ranks_for,
    server_delta,
)

MIXED = [1, 2, 3, 4, 2, 1]
WEIGHT = [30.0, 5.0, 11.0, 17.0, 80.0, 2.0]
NAMES = list(methods.METHODS)

KEEPS_THE_BASE = set(NAMES) - oracles.KERNELS
"""The others add to the base kernels."""

FACTORED = oracles.SINGULAR.keys() | {"flora", "frlora"}
"""Methods whose result has other components than the clients have."""

AVERAGES = [s for s in SPECS if method_name(s) not in FACTORED]
PREFIXES = [s for s in SPECS if method_name(s) not in oracles.HOLD_ALL | oracles.CHOSEN_ROWS]

GAUGE = [s for s in SPECS if method_name(s) in oracles.PRODUCT_SPACE | {"florist", "fedhl"}]
GAUGE += ["fedex_lora", "fedex_lora(weights='uniform')"]
"""The result depends on the clients' products only, not on how they are factored."""

LOSSLESS = [s for s in SPECS if s == EXACT.get(method_name(s), s)]
KEEPS_UNOWNED = {"raflora", "rb_lora", "fedsvd"}
"""Factor what clients sent together with the server's own components that no client has."""

ADDS_TO_OWN = KEEPS_UNOWNED | {"fedhl"}
"""What clients of low rank leave out, the server still has."""

KEEPS_EMPTY = [
    s
    for s in AVERAGES
    if "empty='zero'" not in s and method_name(s) != "fed_sb" and "heads=" not in s
]
"""Components without an owner keep the server's value."""

KEEPS_ORDER = {"ffa_lora", "rolora", "fedsvd", "fedrot_lora"} | oracles.CORES
"""The server's components decide in which order the clients' are."""

every_spec = pytest.mark.parametrize("spec", SPECS)
every_method = pytest.mark.parametrize("name", NAMES)


def aggregate(
    spec: str,
    cohort: Cohort,
    start: ClientInit,
    result: Any,
    server: ServerState,
    lora_spec: LoraSpec = GLOBAL,
) -> AggregateResult:
    method, fn = cohorts.compiled(spec, lora_spec)
    return fn(server, method.init_clients(len(cohort.rank)), cohort, start, result)


def effective(
    lora_spec: LoraSpec, before: ServerState, after: ServerState
) -> dict[str, np.ndarray]:
    """The model's change against the base of the round's beginning: adapter and kernels."""
    change = {k: np.asarray(v, np.float64) for k, v in server_delta(lora_spec, after).items()}
    for path, kernel in after.kernels.items():
        change[path] += np.asarray(kernel, np.float64) - np.asarray(
            before.kernels[path], np.float64
        )
    return change


def broadcast(
    spec: str, server: ServerState, cohort: Cohort, lora_spec: LoraSpec = GLOBAL
) -> ClientInit:
    method, _ = cohorts.compiled(spec, lora_spec)
    return method.broadcast(server, method.init_clients(len(cohort.rank)), cohort)


def server_for(spec: str, lora_spec: LoraSpec = GLOBAL) -> ServerState:
    method, _ = cohorts.compiled(spec, lora_spec)
    return cohorts.make_server(method, lora_spec)


# ---------------------------------------------------------------------------------------- clients


@every_spec
def test_order_of_clients_does_not_matter(spec: str):
    server, cohort = server_for(spec), make_cohort(GLOBAL, MIXED, WEIGHT)
    played = play(spec, GLOBAL, cohort, server=server)
    order = np.random.default_rng(0).permutation(CLIENTS)
    moved = cohort._replace(
        id=cohort.id[order],
        rank=cohort.rank[order],
        weight=cohort.weight[order],
        scale=cohort.scale[order],
    )
    start = broadcast(spec, server, moved)
    assert_trees_equal(start.gain, client(played.start.gain, order))
    assert_trees_equal(start.adapter, client(played.start.adapter, order))
    outcome = aggregate(spec, moved, start, client(played.result, order), server)
    assert_trees_close(
        effective(GLOBAL, server, outcome.server), effective(GLOBAL, server, played.outcome.server)
    )


@pytest.mark.parametrize("spec", LOSSLESS)
@pytest.mark.parametrize("lora_spec", [GLOBAL, PER_CLIENT], ids=["alpha/R", "alpha/r"])
def test_aggregate_of_one_client_is_its_own_model(spec: str, lora_spec: LoraSpec):
    """Exact for a client of full rank, whatever the rule; the other five are absent."""
    server = server_for(spec, GLOBAL)
    weight = [0, 0, 0, 7, 0, 0]
    cohort = make_cohort(lora_spec, [4, 4, 1, 4, 4, 4], weight)
    method, fn = cohorts.compiled(spec, GLOBAL)  # a client's scale is data
    state = method.init_clients(CLIENTS)
    start = method.broadcast(server, state, cohort)
    result = cohorts.train(start, cohorts.random_adapter(GLOBAL, 9, CLIENTS))
    want = client(client_deltas(start, result), 3)
    after = fn(server, state, cohort, start, cohorts.poison(result, cohort.weight == 0)).server
    assert_trees_close(effective(GLOBAL, server, after), jax.device_get(want))


@pytest.mark.parametrize(
    "spec",
    [
        s
        for s in LOSSLESS
        if method_name(s) not in KEEPS_UNOWNED | {"fslora", "fedhl"} and "empty='zero'" not in s
    ],
)
def test_aggregate_of_one_low_rank_client_keeps_its_components(spec: str):
    """Its first components (all it has) are its own; what it does not have stays as it was."""
    server = server_for(spec)
    cohort = make_cohort(GLOBAL, [4, 2, 4, 4, 4, 4], [0, 9, 0, 0, 0, 0])
    played = play(spec, GLOBAL, cohort, server=server)
    delta = client(client_deltas(played.start, played.result), 1)
    after = played.outcome.server
    if method_name(spec) in oracles.PRODUCT_SPACE | {"florist"} | oracles.HOLD_ALL:
        assert_trees_close(effective(GLOBAL, server, after), jax.device_get(delta))
        return
    mine = lora.deltas(after.adapter, lora.uniform_gain(GLOBAL, 2))
    assert_trees_close(mine, delta)
    rest = lambda tree: {path: (p.a[..., 2:], p.b[..., 2:, :]) for path, p in tree.items()}  # noqa: E731
    assert_trees_equal(rest(after.adapter), rest(server.adapter))


@pytest.mark.parametrize(
    # Clients of low rank that train different modules are not identical.
    ("spec", "rank"),
    [(spec, R) for spec in LOSSLESS]
    + [(s, 2) for s in LOSSLESS if s in PREFIXES and method_name(s) not in ADDS_TO_OWN],
)
def test_identical_clients_agree_on_their_model(spec: str, rank: int):
    server = server_for(spec)
    cohort = make_cohort(GLOBAL, [rank] * CLIENTS, WEIGHT)
    start = broadcast(spec, server, cohort)
    one = cohorts.random_adapter(GLOBAL, 5)
    same = jax.tree.map(lambda x: np.broadcast_to(x, (CLIENTS, *x.shape)), one)
    result = cohorts.train(start, same)
    after = aggregate(spec, cohort, start, result, server).server
    if method_name(spec) in FACTORED:
        ours = effective(GLOBAL, server, after)
    else:
        ours = lora.deltas(after.adapter, lora.uniform_gain(GLOBAL, rank))
    assert_trees_close(
        jax.device_get(ours), jax.device_get(client(client_deltas(start, result), 0))
    )


@every_spec
def test_absent_clients_have_no_influence(spec: str):
    """Whatever their values, ranks and scales; not even as NaN, and bit for bit."""
    server = server_for(spec)
    weight = np.array([3.0, 0.0, 5.0, 2.0, 0.0, 0.0], np.float32)
    cohort = make_cohort(GLOBAL, [1, 2, 3, 2, 1, 1], weight)
    played = play(spec, GLOBAL, cohort, server=server)  # NaN in the absent
    absent = weight == 0
    other = cohort._replace(
        rank=jnp.where(absent, R, cohort.rank),
        scale=jnp.where(absent, jnp.inf, cohort.scale),
        id=jnp.where(absent, 99, cohort.id),
    )
    start = broadcast(spec, server, other)
    result = cohorts.poison(played.result, absent, value=7.0)
    after = aggregate(spec, other, start, result, server).server
    assert_trees_equal(after, played.outcome.server)


@every_spec
def test_an_empty_cohort_leaves_the_server_unchanged(spec: str):
    server = server_for(spec)
    cohort = make_cohort(GLOBAL, MIXED, [0.0] * CLIENTS)
    played = play(spec, GLOBAL, cohort, server=server)
    assert np.isnan(played.result["head/dense"].a).all()
    assert_trees_equal(played.outcome.server, jax.tree.map(jnp.asarray, server))


@every_spec
def test_weights_are_relative(spec: str):
    """Only the ratios of the weights count."""
    server = server_for(spec)
    results = [
        play(spec, GLOBAL, make_cohort(GLOBAL, MIXED, np.array(WEIGHT) * factor), server=server)
        for factor in (1.0, 1024.0)
    ]
    assert_trees_close(results[0].outcome.server, results[1].outcome.server, 1e-6)


@pytest.mark.parametrize("spec", KEEPS_EMPTY)
def test_components_without_an_owner_are_bitwise_unchanged(spec: str):
    """Methods that average components keep components that no present client has."""
    server = server_for(spec)
    cohort = make_cohort(GLOBAL, [1, 4, 1, 4, 1, 4], [3, 0, 5, 0, 2, 0])
    played = play(spec, GLOBAL, cohort, server=server)
    for path in (target.path for target in GLOBAL.targets):
        masks = lora.masked_components(played.start.trainable)
        trained = np.asarray(masks[path])[::2]  # [c, (L,) R], present
        unowned = ~np.any(trained, axis=0)
        assert unowned.any()  # three clients of one component each cannot have all four
        new, old = played.outcome.server.adapter[path], server.adapter[path]
        np.testing.assert_array_equal(np.asarray(new.b)[unowned], np.asarray(old.b)[unowned])
        np.testing.assert_array_equal(
            np.swapaxes(new.a, -1, -2)[unowned], np.swapaxes(old.a, -1, -2)[unowned]
        )


# ------------------------------------------------------------------------------------ what it is


@every_spec
def test_gauge_change_of_one_client_changes_only_factor_averages(spec: str):
    """``(a Q, Q^-1 b)`` is the same model; only methods that average factors see a difference."""
    server = server_for(spec)
    cohort = make_cohort(GLOBAL, [R, 2, 3, R, 2, 1], WEIGHT)
    played = play(spec, GLOBAL, cohort, server=server)
    Q = np.random.default_rng(0).normal(size=(R, R)) + 2 * np.eye(R)

    def turned(x: LoRA) -> LoRA:
        a, b = np.array(x.a, np.float64), np.array(x.b, np.float64)
        a[0], b[0] = a[0] @ Q, np.linalg.inv(Q) @ b[0]
        return LoRA(a.astype(np.float32), b.astype(np.float32))

    result = {path: turned(pair) for path, pair in played.result.items()}
    assert_trees_close(
        jax.device_get(client_deltas(played.start, result)),
        jax.device_get(client_deltas(played.start, played.result)),
    )
    after = aggregate(spec, cohort, played.start, result, server).server
    ours = effective(GLOBAL, server, after)
    want = effective(GLOBAL, server, played.outcome.server)
    for path in want:
        change = np.max(np.abs(ours[path] - want[path])) / np.max(np.abs(want[path]))
        if spec in GAUGE:
            assert change < 1e-5, path
        else:
            assert change > 1e-3, path


@pytest.mark.parametrize("spec", [s for s in SPECS if method_name(s) not in KEEPS_ORDER])
def test_permuting_components_changes_no_product_and_permutes_averages(spec: str):
    """Of equal ranks: nothing for products; a permutation of the server's rows for averages."""
    server = server_for(spec)
    cohort = make_cohort(GLOBAL, [R] * CLIENTS, WEIGHT)
    played = play(spec, GLOBAL, cohort, server=server)
    order = np.array([2, 0, 3, 1])
    move = lambda tree: {p: LoRA(x.a[..., order], x.b[..., order, :]) for p, x in tree.items()}  # noqa: E731
    after = aggregate(spec, cohort, played.start, move(played.result), server).server
    assert_trees_close(
        effective(GLOBAL, server, after), effective(GLOBAL, server, played.outcome.server)
    )
    if method_name(spec) not in FACTORED:
        assert_trees_close(after.adapter, move(played.outcome.server.adapter), 1e-6)


@every_spec
def test_inactive_components_are_exactly_zero(spec: str):
    """In both factors and in the gain; nothing inactive is trainable; left-out layers never are."""
    for lora_spec in (GLOBAL, PER_CLIENT):
        server = server_for(spec, GLOBAL)
        cohort = make_cohort(lora_spec, MIXED, WEIGHT)
        played = play(spec, GLOBAL, cohort, server=server)
        for target in lora_spec.targets:
            path = target.path
            gain = np.asarray(played.start.gain[path])  # [c, (L,) R]
            a, b = (np.asarray(x) for x in played.start.adapter[path])
            ta, tb = (np.asarray(x) for x in played.start.trainable[path])
            name = method_name(spec)
            if name in oracles.CORES:
                assert not np.any(tb)
            elif name not in oracles.ONE_FACTOR:
                np.testing.assert_array_equal(ta[..., 0, :], tb[..., :, 0])
            else:
                assert not np.any(ta)  # round 0 trains b
            trainable = ta[..., 0, :] | tb[..., :, 0]
            for factor in (np.swapaxes(a, -1, -2), b):
                assert not np.any(factor[gain == 0])
            assert not np.any(trainable & (gain == 0))
            adapted = np.array([True] if target.layers is None else target.layers)
            layers = gain.reshape(CLIENTS, -1, R)
            mine = [cohorts.trained_by(spec, lora_spec, r) for r in MIXED]
            counts = np.where(adapted, np.array(mine)[:, None], 0)
            if name != "lora_a2":  # whose counts are over all matrices together
                np.testing.assert_array_equal(trainable.reshape(layers.shape).sum(-1), counts)
            active = np.where(adapted, np.array(MIXED)[:, None], 0)
            everything = np.broadcast_to(np.where(adapted, R, 0), counts.shape)
            holds_all = name in oracles.HOLD_ALL
            np.testing.assert_array_equal(
                (layers != 0).sum(-1), everything if holds_all else active
            )
            scale = np.where(holds_all, np.float32(lora_spec.server_scale), cohort.scale)
            if name == "fslora":
                scale = np.float32(lora_spec.server_scale * R) / np.array(MIXED, np.float32)
            for n, row in enumerate(layers):
                assert set(np.unique(row)) <= {np.float32(0), scale[n]}
            # After training and aggregation still zero where it was inactive, and left out.
            ra, rb = played.result[path]
            for factor in (np.swapaxes(ra, -1, -2), rb):
                assert not np.any(factor[gain == 0])
            after = played.outcome.server
            if target.layers is not None:
                left_out = ~adapted
                assert not np.any(np.asarray(after.adapter[path].a)[left_out])
                assert not np.any(np.asarray(after.adapter[path].b)[left_out])
                if after.kernels:
                    np.testing.assert_array_equal(
                        np.asarray(after.kernels[path])[left_out],
                        np.asarray(server.kernels[path])[left_out],
                    )


@every_method
def test_only_documented_methods_change_the_base(name: str):
    """The others leave the base alone bit for bit by never holding it."""
    server = server_for(name)
    after = play(name, GLOBAL, make_cohort(GLOBAL, MIXED, WEIGHT), server=server).outcome.server
    if name in KEEPS_THE_BASE:
        assert server.kernels == {}
        assert after.kernels == {}
    else:
        assert after.kernels.keys() == {s.path for s in GLOBAL.targets}
        if name == "flora":
            assert not any(np.any(x) for x in jax.tree.leaves(after.adapter))


CHANGED_OR_KEPT = {
    "fslora", "lora_a2", "ffa_lora", "rolora", "fedsa_lora", "lora_fair", "fedhl", "fedsvd",
    "fedrot_lora", "frlora", "ravan", "fed_sb",
}  # fmt: skip
"""Not a mean of what clients hold alone; the oracle speaks for them."""


@pytest.mark.parametrize(
    "spec", [s for s in LOSSLESS if method_name(s) not in CHANGED_OR_KEPT | {"fedex_lora"}]
)
def test_averaging_weights_sum_to_one(spec: str):
    """If every client sends ones, the mean of any owned component is one; zero padding's is less.

    Methods that average products return the mean of the all-one products.
    """
    server = server_for(spec)
    cohort = make_cohort(GLOBAL, MIXED, WEIGHT)
    start = broadcast(spec, server, cohort)
    mask = jax.device_get(start.trainable)
    result = jax.tree.map(
        lambda m, x: np.broadcast_to(m, x.shape).astype(np.float32), mask, start.adapter
    )
    after = aggregate(spec, cohort, start, result, server).server
    share = np.array(WEIGHT) / np.sum(WEIGHT)
    if "uniform" in spec:
        share = np.full(CLIENTS, 1 / CLIENTS)
    owners = np.array(MIXED)[:, None] > np.arange(R)
    name = method_name(spec)
    for target in GLOBAL.targets:
        adapted = slice(None) if target.layers is None else np.array(target.layers)
        a, b = (np.asarray(x)[adapted] for x in after.adapter[target.path])
        rows = np.swapaxes(a, -1, -2)
        if name in FACTORED:
            mean = np.sum(share * MIXED) * GLOBAL.server_scale  # every entry of a product is s * r
            if name in KEEPS_UNOWNED:
                mean = R * GLOBAL.server_scale  # every component has an owner and counts fully
            ours = effective(GLOBAL, server, after)[target.path][adapted]
            np.testing.assert_allclose(ours, mean, rtol=1e-5)
        elif name in {"masked_mean", "replication"}:
            np.testing.assert_allclose(rows, 1, rtol=1e-6)
            np.testing.assert_allclose(b, 1, rtol=1e-6)
        elif name == "fed_plora":
            trained = np.any(mask[target.path].b, axis=0)[adapted][..., 0]  # [(L,) R]
            np.testing.assert_allclose(rows[trained], 1, rtol=1e-6)
            np.testing.assert_allclose(b[trained], 1, rtol=1e-6)
        else:
            if name == "hetlora":
                share = np.array(MIXED) / np.sum(MIXED)  # norms of all-one products grow with r
            dilution = np.broadcast_to(share @ owners, b.shape[:-1])
            assert np.all(dilution[..., 0] > 1 - 1e-6) and np.all(dilution[..., 1:] < 1)
            np.testing.assert_allclose(rows[..., 0], dilution, rtol=1e-5)
            np.testing.assert_allclose(b[..., 0], dilution, rtol=1e-5)


ONE_MEAN = {"zero_padding", "masked_mean", "replication", "fed_plora"}
"""With equal ranks these are plain averaging: no padding happens."""


@pytest.mark.parametrize("spec", [s for s in SPECS if method_name(s) in ONE_MEAN])
def test_with_equal_ranks_all_averages_are_plain_averaging(spec: str):
    """Parallel modules as well, where every client trains all of them."""
    name, options = registry.parse(spec)
    weights = options.get("weights", "uniform" if name == "fed_plora" else "examples")
    plain = f"fedit(weights={weights!r})" if weights == "uniform" else "fedit"
    server = server_for(plain)
    only_full = name == "fed_plora" or spec not in KEEPS_EMPTY  # or components 3 and 4 are zeroed
    for rank in (R,) if only_full else (2, R):
        cohort = make_cohort(GLOBAL, [rank] * CLIENTS, WEIGHT)
        ours = play(spec, GLOBAL, cohort, server=server).outcome.server
        want = play(plain, GLOBAL, cohort, server=server).outcome.server
        assert_trees_close(ours.adapter, want.adapter, 5e-7)


# -------------------------------------------------------------------------------------- compiling

OTHER_COHORTS = [
    ([R] * CLIENTS, [1.0] * CLIENTS),
    ([1, 1, 1, 1, 1, 2], [0.0, 1, 0, 0, 4, 0]),
    ([2] * CLIENTS, [0.0] * CLIENTS),
]


@pytest.mark.parametrize(
    # An option is read when a method is made; what may compile again is the rule.
    "spec",
    [pytest.param(spec, marks=[pytest.mark.slow] * (spec not in NAMES)) for spec in SPECS],
)
def test_another_cohort_does_not_recompile(spec: str):
    """Ranks, weights, members, scales, rounds and keys are data."""
    _, fn = cohorts.compiled(spec, GLOBAL)
    server = server_for(spec)
    play(spec, GLOBAL, make_cohort(GLOBAL, MIXED, WEIGHT), server=server)
    compilations = fn._cache_size()
    for n, (rank, weight) in enumerate(OTHER_COHORTS, 1):
        for lora_spec in (GLOBAL, PER_CLIENT):
            cohort = make_cohort(lora_spec, rank, weight, ids=np.arange(6) * n, round=n, seed=n)
            play(spec, GLOBAL, cohort, server=server)
    assert fn._cache_size() == compilations


HEAD = LoraSpec(targets=GLOBAL.targets[1:], rank=R, alpha=6.0)


@pytest.mark.parametrize(
    "name", problems.one_of_each_kind({*problems.KINDS, "hetlora", "florist", "lora_fair"})
)
def test_jit_and_plain_python_agree(name: str):
    """In value, type and structure, for both functions; and broadcast compiles once."""
    method = cohorts.in_two_factors(methods.make(name, HEAD))
    server = jax.tree.map(jnp.asarray, cohorts.make_server(method, HEAD))
    broadcast, fn = jax.jit(method.broadcast), jax.jit(method.aggregate)
    for n, (rank, weight) in enumerate([(MIXED, WEIGHT), *OTHER_COHORTS]):
        cohort = make_cohort(HEAD, rank, weight, ids=np.arange(CLIENTS) * n, round=n, seed=n)
        state = method.init_clients(CLIENTS)
        start = method.broadcast(server, state, cohort)
        assert_trees_close(broadcast(server, state, cohort), start, 1e-6)
        result = cohorts.train(start, cohorts.random_adapter(HEAD, n, CLIENTS))
        outcome = fn(server, state, cohort, start, result)
        if n == 0:
            plain = method.aggregate(server, state, cohort, start, cohorts.on_device(result))
            assert_trees_close(
                effective(HEAD, server, plain.server), effective(HEAD, server, outcome.server)
            )
        assert np.all(outcome.rank <= cohort.rank)
        types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
        assert types(outcome.server) == types(plain.server) == types(server)
        server = outcome.server
    assert broadcast._cache_size() == 1
    assert fn._cache_size() == 1


@every_method
@pytest.mark.parametrize(
    ("rule", "multiplier"),
    [("alpha/R", 1.5), ("alpha/r", 1.5), ("alpha/sqrt(R)", 3.0), ("alpha/sqrt(r)", 3.0)],
)
def test_the_scale_is_applied_exactly_once(name: str, rule: str, multiplier: float):
    """Alpha 6 and rank 4, in numbers: neither lost nor doubled from client to server and back."""
    lora_spec = dataclasses.replace(HEAD, scale_rule=rule)
    method = cohorts.in_two_factors(methods.make(EXACT.get(name, name), lora_spec))
    server = cohorts.on_device(cohorts.make_server(method, lora_spec))
    cohort = make_cohort(lora_spec, [R] * CLIENTS)
    one = cohorts.random_adapter(lora_spec, 2)
    if name in {"ffa_lora", "rolora", "fedsvd"}:  # round 0 trains b
        one = {path: LoRA(server.adapter[path].a, pair.b) for path, pair in one.items()}
    if name in oracles.CORES:  # a core with something on its diagonal
        a = server.state["head/dense"] * jnp.arange(1.0, R + 1)[None]
        one = {path: LoRA(a, server.adapter[path].b) for path in one}
    result = jax.tree.map(lambda x: np.stack([x] * CLIENTS), one)
    start = method.broadcast(server, method.init_clients(CLIENTS), cohort)
    after, own, *_ = method.aggregate(
        server, method.init_clients(CLIENTS), cohort, start, cohorts.on_device(result)
    )
    pair = one["head/dense"]
    want = multiplier * np.asarray(pair.a, np.float64) @ pair.b
    assert_close(effective(lora_spec, server, after)["head/dense"], want)
    if name in KEEPS_THE_BASE:
        again = method.broadcast(after, own, cohort)
        assert_close(client(client_deltas(again, again.adapter), 0)["head/dense"], want)


@pytest.mark.slow  # by default whole rounds of one method of each kind, in `test_sharding`
@every_method
def test_sharding_the_clients_over_devices_changes_nothing(name: str):
    """The client axis spread over eight devices; two of the clients are absent padding."""
    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()), ("clients",))
    spread = NamedSharding(mesh, PartitionSpec("clients"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    server = server_for(name)
    cohort = make_cohort(GLOBAL, MIXED, WEIGHT)
    played = play(name, GLOBAL, cohort, server=server)
    padded = make_cohort(GLOBAL, [*MIXED, R, 1], [*WEIGHT, 0, 0])
    two_more = lambda x: np.concatenate([x, np.zeros_like(x[:2])])  # noqa: E731
    method, fn = cohorts.compiled(name, GLOBAL)
    shared = padded._replace(
        **{
            f: jax.device_put(getattr(padded, f), spread) for f in ("id", "rank", "weight", "scale")
        },
        round=jax.device_put(padded.round, everywhere),
        key=jax.device_put(padded.key, everywhere),
    )
    start, result = jax.tree.map(two_more, jax.device_get((played.start, played.result)))
    start, result = jax.device_put((start, result), spread)
    assert len(result["head/dense"].a.addressable_shards) == 8
    assert result["head/dense"].a.addressable_shards[0].data.shape[0] == 1
    own = jax.device_put(method.init_clients(len(padded.rank)), spread)
    sharded = fn(jax.device_put(server, everywhere), own, shared, start, result).server
    assert_trees_close(
        effective(GLOBAL, server, sharded), effective(GLOBAL, server, played.outcome.server)
    )


# ---------------------------------------------------------------------------------------- traffic


def serialised(adapter: Any, rows: dict[str, list[int]], lora_spec: LoraSpec) -> int:
    """Bytes of the true-rank arrays of every adapted matrix, as a client would send them."""
    pairs = cohorts.matrices(lora_spec, adapter)
    arrays = [
        np.ascontiguousarray(x, np.float32)
        for name, pair in pairs.items()
        for x in (pair.B[:, rows[name]], pair.A[rows[name]])
    ]
    return sum(len(x.tobytes()) for x in arrays)


def sent_bytes(start: ClientInit, n: int, factors: str = "ab") -> int:
    """What client `n` trains of these factors, cut out of its adapter and serialised."""
    total = 0
    for path, pair in start.adapter.items():
        for factor in factors:
            x = np.asarray(getattr(pair, factor), np.float32)[n]
            mask = np.asarray(getattr(start.trainable[path], factor))[n]
            total += len(x[np.broadcast_to(mask, x.shape)].tobytes())
    return total


def core_bytes(start: ClientInit, n: int) -> int:
    """What client `n` trains of its cores, serialised; `a` and `b` follow from the seed."""
    total = 0
    for path, core in dict(start.coefficients).items():
        x = np.asarray(core, np.float32)[n]
        mask = np.asarray(dict(start.trained_coefficients)[path])[n]
        total += len(x[np.broadcast_to(mask, x.shape)].tobytes())
    return total


@every_spec
def test_traffic_equals_the_size_of_what_is_sent(spec: str):
    """Byte counts against really serialised factors and index lists."""
    name, options = registry.parse(spec)
    lora_spec = HEAD if name == "lora_a2" else GLOBAL  # whose components have one size
    method = methods.make(spec, lora_spec)
    rank = ranks_for(spec, [1, 3, 2, 4, 2, 1], 3)
    cohort = make_cohort(lora_spec, rank)
    server = cohorts.make_server(method, lora_spec)
    start = cohorts.begin(method, server, method.init_clients(CLIENTS), cohort, lora_spec)
    traffic = method.traffic(server, rank, 0)
    shared = "a" if name == "fedsa_lora" else "ab"
    numbers = np.array([sent_bytes(start, n, shared) for n in range(CLIENTS)])
    if name in oracles.CORES:
        numbers = np.array([core_bytes(start, n) for n in range(CLIENTS)])
    elif start.coefficients:
        numbers += 4 * rank * lora_spec.matrices  # every coefficient is trained
    rows = [cohorts.trained_rows(lora_spec, start.trainable, n) for n in range(CLIENTS)]
    every_matrix = name == "lora_a2" or (
        name in oracles.CHOSEN_ROWS and cohorts.option(spec, "indices") == "layer"
    )
    matrices = list(rows[0]) if every_matrix else list(rows[0])[:1]
    index = np.array([sum(np.array(r[m], np.int32).nbytes for m in matrices) for r in rows])
    # The server knows what the others choose: it is the first ones, those in turn, or the largest.
    drawn = options.get("selection", "random") == "random"
    up = numbers + index if name in oracles.CHOSEN_ROWS | {"lora_a2"} and drawn else numbers
    down = numbers
    whole = {m: list(range(R)) for m in rows[0]}
    if name in oracles.CORES:
        heads = R // cohorts.trained_by(spec, lora_spec, 1)
        share = np.array([cohorts.trained_by(spec, lora_spec, r) for r in rank]) / R
        down = (numbers / share).astype(np.int64)  # all cores
        if heads > 1 and drawn:  # their numbers, for each matrix
            up = numbers + (4 * heads * share * lora_spec.matrices).astype(np.int64)
    elif name in {"fed_plora", "frlora"}:
        down = np.full(CLIENTS, serialised(server.adapter, whole, lora_spec))
    elif name == "fedsvd":  # both factors
        sizes = lora_spec.component_size * 4
        down = rank.astype(np.int64) * sizes
    elif name == "lora_a2":  # both factors: a client remembers neither
        down = np.full(CLIENTS, serialised(server.adapter, whole, lora_spec))
    elif name == "flora":
        down = np.full(CLIENTS, numbers.sum())  # the stack of the whole cohort
    elif name == "fedex_lora":
        stack = options.get("residual_rank") or rank.sum()
        pairs = cohorts.matrices(lora_spec, server.adapter).values()
        sizes = [(len(p.B), p.A.shape[1]) for p in pairs]
        down = numbers + 4 * sum(min(stack * (d + k), d * k) for d, k in sizes)
    np.testing.assert_array_equal(traffic.up, up)
    np.testing.assert_array_equal(traffic.down, down)
    all_send = name in {"flora", "fedex_lora"}
    assert traffic.common == (down[0] - numbers[0] * (name == "fedex_lora")) * all_send
    assert traffic.up.dtype == traffic.down.dtype == np.int64


@every_method
def test_traffic_counts_beyond_32_bits(name: str):
    """A hundred clients of rank 256 on every linear layer of a 70B model do not overflow."""

    def traffic(layers: int, targets: int) -> methods.Traffic:
        target = LoraTarget("layers/x", 8192, 28672, (True,) * layers)
        lora_spec = LoraSpec(targets=(target,) * targets, rank=256, alpha=1.0)
        method = methods.make(name, lora_spec)
        return method.traffic(method.init({}, {}), np.full(100, 256, np.int32), 0)

    one, all = traffic(1, 1), traffic(80, 7)
    assert all.up[0] > 2**32 or name in oracles.CORES  # whose messages are small
    assert 0 <= 560 * one.up[0] - all.up[0] <= 560 * 4 * 256  # at most a list of indices a layer
    assert all.down[0] == 560 * one.down[0]


# ---------------------------------------------------------------------------------------- choosing


def test_only_documented_methods_need_equal_ranks():
    one = {name for name in NAMES if not methods.takes_mixed_ranks(name)}
    assert one == {"fedit", "fedex_lora", "lora_fair", "fedsa_lora", "fed_sb"}


def test_fedit_refuses_mixed_ranks():
    with pytest.raises(InputError, match=r"'fedit' needs clients of one rank, got ranks \[1, 4\]"):
        methods.make("fedit", GLOBAL).check(np.array([4, 1, 4]))
    methods.make("fedit", GLOBAL).check(np.array([4, 4]))


@every_method
def test_a_misspelt_option_value_is_refused(name: str):
    """A typo in a value must not silently become another rule."""
    for option, values in cohorts.literal_options(name).items():
        wrong = f"{values[0]}s"
        with pytest.raises(InputError, match=f"'{name}': {option} is one of .*{wrong}"):
            methods.make(f"{name}({option}={wrong!r})", GLOBAL)


@every_method
def test_records_are_frozen_and_documented(name: str):
    method = methods.make(name, GLOBAL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.init = None  # pyright: ignore[reportAttributeAccessIssue]
    assert methods.summary(name)
    assert (method.name, method.spec) == (name, GLOBAL)
    assert method.paper == methods.paper(name) != ""
