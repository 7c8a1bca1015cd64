"""Update transforms in whole rounds: modes, heads, adversarial and non-finite clients."""

import jax
import numpy as np
import optax
import pytest

from fedjax_lora.federated import transforms
from tests._helpers import client_messages, problems
from tests._helpers.problems import COHORT, POINTS, assert_close, assert_same_bits, stub_rounds

NOISY = ("gaussian_noise(multiplier=0.1, norm=5.0)", "int8")
FED_ADAM = optax.adam(0.1, b1=0.9, b2=0.99, eps=1e-3)
MOMENTUM = optax.sgd(0.7, momentum=0.9)


def updates(*specs):
    return tuple(map(client_messages.spec, specs))


NOISY_UPDATES, MEDIAN, OUTLIERS = (
    updates(*NOISY), updates("median"), updates("reject_outliers(factor=4.0)")
)  # fmt: skip


def plan_of(t=0, **options):
    return problems.round_federation(**options).plan(t, np.minimum(problems.RANK, 2), 0.3)


def play(made, count=3, **other):
    state = made.state()
    for t in range(count):
        state, seen = made.run(state, plan_of(t), **other)
    return problems.copy(state), problems.copy(seen)


def hostile(plan, place, factor=1e5):
    """The data of one client of the cohort moved far away."""
    points = POINTS.copy()
    points[problems.members()[plan.id[place]]] += factor
    return points


@pytest.mark.parametrize("mode", [pytest.param("loop", marks=pytest.mark.slow), "sharded"])
def test_execution_modes_draw_the_same_noise(mode):
    options = {"updates": NOISY_UPDATES, "server_optimizer": FED_ADAM}
    got, _ = play(stub_rounds("quadratic", mode=mode, **options))
    want, _ = play(stub_rounds("quadratic", **options))
    assert_close(got, want)
    # The objective has no gradient for the adapter: what is in it is noise.
    assert problems.changed(want.server.adapter, stub_rounds("quadratic").begin.server.adapter)


def test_rounds_draw_different_noise():
    made = stub_rounds("quadratic", heads="frozen", updates=NOISY_UPDATES)
    plan = plan_of()
    states = [
        made.run(made.state(), plan._replace(round=np.int32(t)), seed=seed)[0]
        for t, seed in ((0, 0), (1, 0), (0, 1))
    ]
    values = [np.asarray(s.server.adapter["layer"].b) for s in states]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(values[one] - values[two]).max() > 1e-2


@pytest.mark.parametrize("place", range(COHORT))
def test_median_resists_an_outlier_that_moves_the_mean(place):
    plan = plan_of()
    distance = {}
    for name, chosen in (("mean", ()), ("median", MEDIAN)):
        made = stub_rounds("quadratic", updates=chosen)
        state, seen = made.run(made.state(), plan, data=hostile(plan, place))
        assert not np.any(seen.rejected)
        distance[name] = float(np.abs(np.asarray(state.head["w"])).max())
    assert distance["median"] < np.abs(POINTS).max() < 1e3 < distance["mean"]


@pytest.mark.parametrize("heads", ["average", "local"])
def test_rejected_outlier_equals_an_absent_client(heads):
    """With local heads nothing of a head is sent, so a head can be no outlier."""
    made, plan = stub_rounds("quadratic", heads=heads, updates=OUTLIERS), plan_of()
    got, seen = made.run(made.state(), plan, data=hostile(plan, 1))
    if heads == "local":
        assert not np.any(seen.rejected)
        assert np.abs(np.asarray(got.clients.head["w"])[plan.id[1]]).min() > 1e3
        return
    weight = np.where(np.arange(len(plan.id)) == 1, 0, plan.weight).astype(np.float32)
    want, quiet = made.run(made.state(), plan._replace(weight=weight))
    assert_same_bits(problems.copy(got), problems.copy(want))
    assert np.flatnonzero(seen.rejected).tolist() == [1]
    assert not np.any(quiet.rejected)
    assert problems.changed(got.head, made.begin.head)


def test_local_heads_are_neither_noised_nor_rounded():
    plain, noisy = (
        play(stub_rounds("quadratic", heads="local", updates=chosen))[0]
        for chosen in ((), NOISY_UPDATES)
    )
    assert_same_bits(noisy.clients, plain.clients)
    assert problems.changed(noisy.server.adapter, plain.server.adapter)


@pytest.mark.parametrize("optimizer", [MOMENTUM, FED_ADAM], ids=["momentum", "adam"])
def test_if_every_update_is_rejected_the_state_is_unchanged(optimizer):
    """The server's momentum, which holds earlier rounds here, is unchanged too."""
    made = stub_rounds("quadratic", updates=OUTLIERS, server_optimizer=optimizer)
    before, _ = play(made, 2)
    broken = np.full_like(POINTS, np.nan)
    after, seen = made.run(made.place(before), plan_of(2), data=broken)
    assert_same_bits(problems.copy(after), before)
    assert np.sum(seen.rejected) == COHORT
    healthy, _ = made.run(made.place(before), plan_of(2))
    assert problems.changed(problems.copy(healthy).optimizer, before.optimizer)


def test_server_sgd_with_rate_one_equals_no_optimizer():
    got, _ = play(stub_rounds("quadratic", server_optimizer=optax.sgd(1.0)))
    want, _ = play(stub_rounds("quadratic"))
    assert_close((got.server, got.head), (want.server, want.head), 1e-6)


def test_server_momentum_on_the_head_matches_a_hand_computation():
    made, plain = stub_rounds("quadratic", server_optimizer=MOMENTUM), stub_rounds("quadratic")
    state, shadow = made.state(), plain.begin
    memory, head = np.zeros(3), np.zeros(3)
    for t in range(3):
        shadow = shadow._replace(head={"w": head.astype(np.float32)})
        alone, _ = plain.run(plain.place(shadow), plan_of(t))
        memory = 0.9 * memory + (np.asarray(alone.head["w"], np.float64) - head)
        head = head + 0.7 * memory
        state, _ = made.run(state, plan_of(t))
        np.testing.assert_allclose(state.head["w"], head, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["vmap", "sharded"])
def test_transformed_round_compiles_once_and_donates_its_state(mode):
    options = {"updates": NOISY_UPDATES, "server_optimizer": FED_ADAM}
    made = stub_rounds("quadratic", mode=mode, **options)
    state = made.state()
    for t in range(3):
        old = state
        state, _ = made.run(state, plan_of(t, seed=t))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert made.fn.compiled._cache_size() == 1


def test_non_finite_transform_rejects_its_client():
    """For example, the difference of two finite numbers may overflow."""

    def apply(start, trained, trainable, weight, key):
        return jax.tree.map(lambda x: x.at[1].set(np.inf), trained), weight

    broken = transforms.UpdateTransform(apply=apply, stage="wire")
    made, plan = stub_rounds("quadratic", updates=(broken,)), plan_of()
    got, seen = made.run(made.state(), plan)
    assert np.flatnonzero(seen.rejected).tolist() == [1]
    weight = np.where(np.arange(len(plan.id)) == 1, 0, plan.weight).astype(np.float32)
    plain = stub_rounds("quadratic")
    want, _ = plain.run(plain.state(), plan._replace(weight=weight))
    assert_close(got.head, want.head, 1e-6)
