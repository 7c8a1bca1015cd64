"""A round: compilation, rejection of updates, heads, client state and random keys."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated, lora, methods
from tests._helpers import problems
from tests._helpers.problems import (
    COHORT,
    PADDED,
    POINTS,
    SIZES,
    assert_same_bits,
    bag_rounds,
    ranks_for,
    stub_rounds,
)

KINDS = problems.one_of_each_kind()
kinds_of_method = pytest.mark.parametrize("method", KINDS)


def plan_of(t: int = 0, method: str = "zero_padding", rate: float = 0.05, seed: int = 0):
    return problems.round_federation(seed=seed).plan(t, ranks_for(method), rate)


def stub_plan_of(t: int = 0, rate: float = 0.05):
    """A plan of clients that `problems.STUB` has room for."""
    return problems.round_federation().plan(t, np.minimum(problems.RANK, problems.STUB.rank), rate)


# ---------------------------------------------------------------------------------------- compiling

SHARDED = problems.one_of_each_kind({*problems.ON_THE_BASE, "fedsa_lora"})
"""`test_sharding` has more methods on several devices, with an objective that compiles sooner."""


@pytest.mark.parametrize(
    ("method", "mode"),
    [pytest.param(*x.values, "vmap", marks=x.marks) for x in KINDS]
    + [pytest.param(*x.values, "sharded", marks=x.marks) for x in SHARDED],
)
def test_round_compiles_once(method, mode):
    """Whatever changes from round to round is data, and a state goes in as it came out."""
    made = bag_rounds(method, mode)
    state, rng = made.state(), np.random.default_rng(0)
    cohorts = set()
    for t in range(5):
        rank = rng.permutation(ranks_for(method))
        plan = problems.round_federation(seed=t).plan(t, rank, 0.01 * (t + 1))
        weight = np.where(plan.weight > 0, rng.uniform(1, 9, PADDED), 0).astype(np.float32)
        state, _ = made.run(state, plan._replace(weight=weight), seed=t)
        cohorts.add((*plan.id.tolist(), *plan.batches.steps.tolist()))
    assert len(cohorts) > 3
    assert made.fn.compiled._cache_size() == 1


@pytest.mark.parametrize("method", SHARDED)
def test_sharded_state_stays_on_every_device(method):
    made = bag_rounds(method, "sharded")
    state, metrics = made.run(made.state(), plan_of(method=method))
    for leaf in jax.tree.leaves((state, metrics)):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == problems.DEVICES


@pytest.mark.parametrize("mode", ["vmap", "sharded"])
def test_input_state_is_donated(mode):
    made = bag_rounds("zero_padding", mode)
    state = made.state()
    after, _ = made.run(state, plan_of())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, made.base, made.data)))


# --------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize("method", ["fed_plora", "flora", "hlora"])
def test_same_seed_gives_bitwise_equal_results(method):
    made = bag_rounds(method, "vmap")

    def two_rounds(seed):
        state = made.state()
        for t in range(2):
            state, _ = made.run(state, plan_of(t, method, seed=seed), seed=seed)
        return problems.copy(state.server), problems.copy(state.head)

    assert_same_bits(two_rounds(0), two_rounds(0))
    assert problems.changed(two_rounds(0), two_rounds(1))


def test_random_choices_depend_on_key_and_round():
    """Fed-PLoRA's modules: the same plan, another key or another round."""
    made = bag_rounds("fed_plora", "vmap")
    plan = plan_of()

    def untouched(seed, t):
        state, _ = made.run(made.state(), plan._replace(round=np.int32(t)), seed=seed)
        new, old = (
            state.server.adapter["layers/query"].b,
            made.begin.server.adapter["layers/query"].b,
        )
        return tuple(np.all(np.asarray(new) == old, axis=(0, 2)))

    seen = {(seed, t): untouched(seed, t) for seed in range(3) for t in range(3)}
    assert len({seen[0, t] for t in range(3)} | {seen[1, t] for t in range(3)}) > 1
    assert seen[0, 0] == untouched(0, 0)


def test_training_keys_depend_on_client_and_round():
    """Draws show the keys: the head of a client moves by minus the sum of its draws."""
    made = stub_rounds("noise", heads="local")
    looped = stub_rounds("noise", heads="local", mode="loop")

    def draws(plan, seed=0, fn=made):
        state, _ = fn.run(fn.state(), plan._replace(rate=np.float32(1)), seed=seed)
        return -np.asarray(state.clients.head["w"])

    plan = stub_plan_of()
    present = plan.id[:COHORT]
    first = draws(plan)
    # A client in another place of the cohort draws the same.
    order = np.array([2, 0, 3, 1])
    move = lambda x: x[order] if np.ndim(x) else x  # noqa: E731
    np.testing.assert_array_equal(draws(jax.tree.map(move, plan)), first)
    np.testing.assert_allclose(draws(plan, fn=looped), first, atol=1e-6)
    # Another client, round or run: other draws.
    others = [draws(plan._replace(round=np.int32(1))), draws(plan, seed=1)]
    for other in others:
        assert np.all(np.abs(other[present] - first[present]).max(axis=1) > 1e-2)
    assert len({tuple(np.round(first[k], 4)) for k in present}) == COHORT
    assert np.all(first[np.setdiff1d(np.arange(len(SIZES)), present)] == 0)


def test_method_keys_differ_from_client_keys():
    """One key for both would make a method's choices and dropout depend on each other."""
    seen = {}

    def remember(name, key):
        jax.debug.callback(lambda data: seen.__setitem__(name, np.asarray(data)), key)

    plain = methods.make("zero_padding", problems.STUB)

    def broadcast(server, own, cohort):
        remember("method", jax.random.key_data(cohort.key))
        return plain.broadcast(server, own, cohort)

    made = stub_rounds("quadratic", method=dataclasses.replace(plain, broadcast=broadcast))
    keys = []
    for t in range(2):
        made.run(made.state(), stub_plan_of(t)._replace(round=np.int32(t)))
        jax.effects_barrier()
        root = jax.random.fold_in(jax.random.key(0), t)
        training = [jax.random.fold_in(jax.random.fold_in(root, 1), k) for k in range(len(SIZES))]
        keys += [tuple(np.ravel(seen["method"]))]
        keys += [tuple(np.ravel(jax.random.key_data(key))) for key in training]
    assert len(set(keys)) == len(keys)


# ----------------------------------------------------------------------------------- broken updates


def broken_base(made, rows=slice(problems.BROKEN, None)):
    table = made.base["words"]["embedding"].at[rows].set(jnp.nan)
    return {**made.base, "words": {"embedding": table}}


def break_client(made, client):
    """All texts of a client hold the word whose vector is not a number."""
    rows = problems.members()[client]
    return made.data._replace(ids=made.data.ids.at[rows, 0].set(problems.BROKEN))


@kinds_of_method
def test_non_finite_client_equals_an_absent_client(method):
    """Weights of the others are renormalised: the same bits as without it."""
    made, plan = bag_rounds(method, "vmap"), plan_of(method=method)
    for place in range(COHORT):
        data = break_client(made, plan.id[place])
        got, seen = made.run(made.state(), plan, base=broken_base(made), data=data)
        without = plan.weight * (np.arange(PADDED) != place)
        want, quiet = made.run(made.state(), plan._replace(weight=without.astype(np.float32)))
        assert_same_bits((got.server, got.head), (want.server, want.head))
        assert np.flatnonzero(seen.rejected).tolist() == [place]
        assert not np.any(quiet.rejected)
        assert problems.changed(got.head, made.begin.head)


@kinds_of_method
def test_if_every_update_is_rejected_the_state_is_unchanged(method):
    made, plan = bag_rounds(method, "vmap"), plan_of(method=method)
    state, seen = made.run(made.state(), plan, base=broken_base(made, slice(None)))
    assert_same_bits(problems.copy(state), made.begin)
    np.testing.assert_array_equal(seen.rejected, plan.weight > 0)  # the absent one is not reported


@functools.cache
def counting():
    """Zero padding that counts, for every client, the rounds it took part in."""
    plain = methods.make("zero_padding", problems.STUB)

    def aggregate(server, own, cohort, start, result):
        outcome = plain.aggregate(server, own, cohort, start, result)
        return outcome._replace(clients=own + 1, rank=cohort.rank + 10)

    return dataclasses.replace(
        plain, aggregate=aggregate, init_clients=lambda count: jnp.zeros(count, jnp.int32)
    )


@pytest.mark.parametrize("heads", ["average", "local"])
def test_client_state_is_kept_between_rounds(heads):
    made = stub_rounds("quadratic", heads=heads, method=counting())
    state, visits = made.state(), np.zeros(len(SIZES), int)
    for t in range(5):
        plan = stub_plan_of(t)
        state, seen = made.run(state, plan)
        visits[plan.id[:COHORT]] += 1
        np.testing.assert_array_equal(seen.rank, plan.rank + 10 * (plan.weight > 0))
    assert visits.max() > 1
    np.testing.assert_array_equal(state.clients.method, visits)


@pytest.mark.parametrize("heads", ["average", "local"])
def test_non_finite_client_keeps_its_state(heads):
    made = stub_rounds("quadratic", heads=heads, method=counting())
    plan = stub_plan_of()
    before, _ = made.run(made.state(), plan)
    before = problems.copy(before)
    victim = plan.id[1]
    data = POINTS.copy()
    data[problems.members()[victim]] = np.inf
    after, seen = made.run(made.place(before), plan, data=data)
    assert np.flatnonzero(seen.rejected).tolist() == [1]
    for new, old in zip(*map(jax.tree.leaves, (after.clients, before.clients)), strict=True):
        same = np.all((np.asarray(new) == old).reshape(len(SIZES), -1), axis=1)
        moved = np.isin(np.arange(len(SIZES)), np.delete(plan.id[:COHORT], 1))
        np.testing.assert_array_equal(same, ~moved)
    assert np.all(np.isfinite(np.asarray(after.head["w"])))


# -------------------------------------------------------------------------------------------- heads


def trained_alone(plan, begin):
    """Every client's head after descent on its own batches: ``[c, 3]``."""
    heads = []
    for k in range(len(plan.id)):
        w = begin[k].astype(np.float64)
        for s in range(int(plan.batches.steps[k])):
            x = POINTS[plan.batches.index[k, s][plan.batches.valid[k, s]]].astype(np.float64)
            w = w - plan.rate * (w - x.mean(axis=0))
        heads.append(w)
    return np.array(heads)


def test_average_heads_are_weighted_by_examples():
    made = stub_rounds("quadratic")
    state, head = made.state(), np.zeros(3)
    for t in range(3):
        plan = stub_plan_of(t)
        state, seen = made.run(state, plan)
        heads = trained_alone(plan, np.tile(head, (PADDED, 1)))
        head = np.average(heads, axis=0, weights=plan.weight)
        np.testing.assert_allclose(state.head["w"], head, rtol=1e-5, atol=1e-7)
    assert state.clients.head == ()
    np.testing.assert_array_equal(seen.examples, plan.weight)


def test_frozen_heads_are_unchanged():
    """In the clients too: every step's loss is that of the head they began with."""
    made, plan = stub_rounds("quadratic", heads="frozen"), stub_plan_of()
    state, seen = made.run(made.state(), plan)
    assert_same_bits(problems.copy(state.head), made.begin.head)
    assert state.clients.head == ()
    for k in range(COHORT):
        x = POINTS[plan.batches.index[k][plan.batches.valid[k]]]
        want = 0.5 * np.mean(np.sum(np.square(x.astype(np.float64)), axis=1))
        assert seen.loss[k] == pytest.approx(want, rel=1e-6)
    assert plan.batches.steps.max() > 1


@pytest.mark.parametrize("mode", ["vmap", "loop", "sharded"])
def test_local_heads_are_kept_by_their_clients(mode):
    made = stub_rounds("quadratic", heads="local", mode=mode)
    state, own = made.state(), np.zeros((len(SIZES), 3))
    for t in range(4):
        plan = stub_plan_of(t)
        assert plan.id[-1] == len(SIZES)  # the absent client, who must not be taken for the last
        state, _ = made.run(state, plan)
        present = plan.id[:COHORT]
        own[present] = trained_alone(plan, own[np.minimum(plan.id, len(SIZES) - 1)])[:COHORT]
        np.testing.assert_allclose(state.clients.head["w"], own, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(state.head["w"], np.zeros(3))


def test_initial_state_has_heads_and_client_state_of_the_method():
    problem = problems.bag()
    adapter = problems.random_adapter(problem.spec, 0)
    kernels = {"layers/query": problem.base["layers"]["query"]["kernel"]}
    for name in methods.METHODS:
        method = methods.make(name, problem.spec)
        begin = lambda heads, method=method: federated.init_state(  # noqa: E731
            method, adapter, kernels, problem.head, clients=5, heads=heads
        )
        assert begin("average").clients.head == begin("frozen").clients.head == ()
        local = begin("local")
        for own, shared in zip(
            *map(jax.tree.leaves, (local.clients.head, problem.head)), strict=True
        ):
            np.testing.assert_array_equal(own, np.broadcast_to(shared, (5, *shared.shape)))
        assert_same_bits(local.head, problem.head)


# -------------------------------------------------------------------------------------- small parts


def test_changed_kernels_replace_those_of_the_base_without_copies():
    base = problems.bag().base
    assert lora.with_kernels(base, {}) is base
    changed = jnp.ones_like(base["layers"]["query"]["kernel"])
    new = lora.with_kernels(base, {"layers/query": changed})
    assert new["layers"]["query"]["kernel"] is changed
    assert new["layers"]["query"]["bias"] is base["layers"]["query"]["bias"]
    assert new["words"]["embedding"] is base["words"]["embedding"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finiteness_is_checked_in_every_leaf_of_every_client(bad):
    tree = {"x": np.zeros((4, 2, 3), np.float32), "y": np.zeros((4, 5), np.float32)}
    assert federated.all_finite(tree).tolist() == [True] * 4
    tree["x"][1, 1, 2] = tree["y"][3, 0] = bad
    assert federated.all_finite(tree).tolist() == [True, False, True, False]
