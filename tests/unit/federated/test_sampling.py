"""Who takes part in a round: distinct clients, drawn from the seed and the round alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.sampling import SAMPLERS
from tests._helpers import problems

ALL = [*SAMPLERS, "available(low=0.0, high=0.0)", "available(low=1.0)"]


def sampler(spec):
    return registry.build(spec, SAMPLERS, "sampling")


@pytest.mark.parametrize("spec", ALL)
@given(clients=st.integers(1, 12), data=st.data(), round=st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_cohorts_are_distinct_clients_determined_by_seed_and_round(spec, clients, data, round):
    cohort = data.draw(st.integers(1, clients))
    sizes = st.lists(st.integers(1, 10**6), min_size=clients, max_size=clients)
    weight = np.array(data.draw(sizes))
    ids = sampler(spec)(3, round, weight, cohort)
    assert len(set(ids.tolist())) == len(ids) <= cohort
    assert ids.min() >= 0 and ids.max() < clients
    assert len(ids) == cohort or spec.startswith("available")
    np.testing.assert_array_equal(ids, sampler(spec)(3, round, weight, cohort))


def counts(spec, weight, cohort, rounds=4000):
    draw = sampler(spec)
    drawn = np.concatenate([draw(0, t, weight, cohort) for t in range(rounds)])
    return np.bincount(drawn, minlength=len(weight)) / rounds


def test_uniform_sampling_equals_that_of_earlier_versions():
    """The draw of earlier versions, which recorded runs go on with."""
    want = np.random.default_rng([5, 0, 7]).choice(9, size=4, replace=False)
    np.testing.assert_array_equal(sampler("uniform")(5, 7, np.ones(9), 4), want)


def test_weighted_sampling_is_proportional_to_the_weights():
    weight = np.array([1, 2, 3, 4])
    np.testing.assert_allclose(counts("weighted", weight, 1), weight / 10, atol=0.03)
    # Two of a cohort: each after the other, of what is left.
    share = weight / 10
    after = share * (share / (1 - share))[:, None]  # [first, second]
    second = after.sum(0) - np.diag(after)
    np.testing.assert_allclose(counts("weighted", weight, 2), share + second, atol=0.03)
    assert counts("weighted", np.array([1e-9, 1e9]), 1, rounds=50).tolist() == [0, 1]


def test_round_robin_takes_every_client_once_per_cycle():
    draw, weight = sampler("round_robin"), np.ones(6)
    turn = np.concatenate([draw(1, t, weight, 2) for t in range(3)])
    assert sorted(turn) == list(range(6)) and list(turn) != list(range(6))
    np.testing.assert_array_equal(draw(1, 3, weight, 2), turn[:2])
    assert counts("round_robin", np.ones(7), 3, rounds=70).tolist() == [3 / 7] * 7


def test_each_client_has_its_own_availability():
    probability = np.random.default_rng([0, 0]).uniform(0.2, 0.9, 8)
    got = counts("available(low=0.2, high=0.9)", np.ones(8), 8)
    np.testing.assert_allclose(got, probability, atol=0.03)
    np.testing.assert_allclose(counts("available(low=1.0)", np.ones(8), 2), 0.25, atol=0.03)
    assert counts("available(low=0.0, high=0.0)", np.ones(8), 3, rounds=50).sum() == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("availble", "did you mean 'available'"),
        ("available(low=0.9, high=0.1)", "the lower one first"),
        ("available(high=2.0)", "they are probabilities"),
        ("weighted(by='size')", "Unknown option"),
    ],
)
def test_invalid_samplers_are_refused(spec, message):
    with pytest.raises(InputError, match=message):
        sampler(spec)


def test_plan_uses_the_sampler_and_accepts_small_cohorts():
    draw = sampler("available(low=0.0, high=0.0)")
    fed = problems.federation(problems.texts(), sampler=draw)
    plan = fed.plan(0, np.ones(len(fed.members), int), 0.1)
    assert fed.drawn(plan).sum() == 1 and (plan.weight > 0).sum() == 1
