"""Round plans depend on (seed, round, client) and not on earlier plans."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.planning import Federation
from tests._helpers import problems

SIZES = [3, 17, 1, 8, 30, 5, 12]
EXAMPLES = sum(SIZES)
RANK = np.array([1, 2, 3, 4, 5, 6, 7])


def make(**options) -> Federation:
    rng = np.random.default_rng(0)
    given = {
        "members": np.split(rng.permutation(EXAMPLES), np.cumsum(SIZES)[:-1]),
        "length": rng.integers(1, 33, EXAMPLES),
        "cohort": 4,
        "padded": 6,
        "batch": 4,
        "epochs": 1,
        "max_steps": None,
        "by_length": False,
        "seed": 0,
    }
    return Federation(**(given | options))


def leaves(plan) -> list[np.ndarray]:
    return [plan.id, plan.rank, plan.weight, plan.rate, plan.round, *plan.batches]


def assert_same(one, other) -> None:
    for x, y in zip(leaves(one), leaves(other), strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


@given(seed=st.integers(0, 50), round=st.integers(0, 1000), cohort=st.integers(1, 7))
@settings(deadline=None)
def test_cohort_contains_each_client_at_most_once(seed, round, cohort):
    ids = make(seed=seed, cohort=cohort, padded=cohort).sample(round)
    assert len(ids) == len(set(ids)) == cohort
    assert set(ids) <= set(range(7))


def test_every_round_draws_anew_and_every_client_is_eventually_drawn():
    drawn = [tuple(make().sample(t)) for t in range(40)]
    assert len(set(drawn)) > 30
    counts = np.bincount(np.concatenate(drawn), minlength=7)
    assert counts.min() > 0.6 * counts.mean()


def test_plan_does_not_depend_on_earlier_plans():
    fed = make()
    in_order = [fed.plan(t, RANK, 0.1) for t in range(4)]
    for t in (3, 0, 2):
        assert_same(make().plan(t, RANK, 0.1), in_order[t])


def test_later_rounds_look_at_the_clients_of_the_cohort_alone():
    """A federation may have a hundred thousand clients."""
    looked = []

    class Members(list):
        def __iter__(self):
            looked.append("at all")
            return super().__iter__()

        def __getitem__(self, k):
            looked.append(k)
            return super().__getitem__(k)

    fed = make(members=Members(make().members))
    fed.plan(0, RANK, 0.1)
    looked.clear()
    plan = fed.plan(1, RANK, 0.1)
    fed.events(plan)
    drawn = fed.sample(1).tolist()
    assert set(looked) == set(drawn) and len(drawn) == 4


@pytest.mark.parametrize("by_length", [False, True])
def test_seeds_and_rounds_change_the_shuffle(by_length):
    plans = [
        make(seed=seed, cohort=7, padded=7, by_length=by_length).plan(t, RANK, 0.1)
        for seed in (0, 1)
        for t in (0, 1)
    ]
    orders = {tuple(p.batches.index[0].ravel()) for p in plans}  # the client with 30 examples
    assert all(p.id[0] == 4 for p in plans) and len(orders) == 4


def test_batches_of_a_client_do_not_depend_on_the_cohort():
    whole = make(cohort=7, padded=7).plan(2, RANK, 0.1)
    small = make(cohort=3, padded=3).plan(2, RANK, 0.1)
    for place, client in enumerate(small.id):
        other = whole.id.tolist().index(client)
        for x, y in zip(small.batches, whole.batches, strict=True):
            np.testing.assert_array_equal(x[place], y[other])


def test_clients_of_equal_size_are_shuffled_differently():
    members = [np.arange(k * 20, k * 20 + 20) for k in range(3)]
    fed = make(members=members, length=np.ones(60, int), cohort=3, padded=3, batch=20)
    plan = fed.plan(0, np.ones(3, int), 0.1)
    assert len({tuple(row % 20) for row in plan.batches.index[:, 0]}) == 3


def test_plan_holds_ranks_weights_and_batches():
    fed = make(max_steps=3)
    for t in range(5):
        plan = fed.plan(t, RANK, 0.25)
        ids, absent = plan.id[:4], slice(4, None)
        assert sorted(ids) == sorted(fed.sample(t))
        np.testing.assert_array_equal(plan.rank[:4], RANK[ids])
        np.testing.assert_array_equal(plan.weight[:4], np.array(SIZES)[ids])
        np.testing.assert_array_equal(
            plan.batches.steps[:4], np.minimum(3, -(-np.array(SIZES)[ids] // 4))
        )
        for k, client in enumerate(ids):
            used = plan.batches.index[k][plan.batches.valid[k]]
            assert set(used) <= set(fed.members[client])
        assert (plan.rate, plan.round) == (np.float32(0.25), t)
        # Those who only fill up waves and devices: beyond the last id, no weight, no work.
        np.testing.assert_array_equal(plan.id[absent], 7)
        np.testing.assert_array_equal(plan.rank[absent], 1)
        np.testing.assert_array_equal(plan.weight[absent], 0)
        np.testing.assert_array_equal(plan.batches.steps[absent], 0)
        assert not plan.batches.valid[absent].any()


@pytest.mark.parametrize("ids", [range(7), [6, 0, 3], [5]])
def test_plan_for_chosen_clients_trains_each_as_in_its_own_round(ids):
    """Chosen clients are split into cohorts by size; each trains as in its own round."""
    fed = make(cohort=3, padded=4)
    parts = fed.parts(np.array(ids))
    assert sorted(np.concatenate(parts)) == sorted(ids)
    assert all(len(part) <= 3 for part in parts) and len(parts) == -(-len(ids) // 3)
    sizes = np.array(SIZES)[np.concatenate(parts)]
    assert np.all(np.diff(sizes) <= 0)
    whole = make(cohort=7, padded=7).plan(2, RANK, 0.1)
    for part in parts:
        plan = fed.plan(2, RANK, 0.1, ids=part)
        assert plan.id[plan.weight > 0].tolist() == part.tolist()
        np.testing.assert_array_equal(plan.id[plan.weight == 0], 7)
        assert plan.batches.index.shape == fed.plan(2, RANK, 0.1).batches.index.shape
        for place, client in enumerate(part):
            other = whole.id.tolist().index(client)
            for x, y in zip(plan.batches, whole.batches, strict=True):
                np.testing.assert_array_equal(x[place], y[other])


def test_clients_are_ordered_by_number_of_steps():
    for t in range(5):
        plan = make(cohort=7, padded=7).plan(t, RANK, 0.1)
        assert np.all(np.diff(plan.batches.steps) <= 0)
        np.testing.assert_array_equal(plan.weight, sorted(SIZES, reverse=True))


def test_plan_uses_the_current_ranks():
    fed = make()
    one, other = fed.plan(1, RANK, 0.1), fed.plan(1, RANK[::-1], 0.1)
    np.testing.assert_array_equal(other.rank[:4], RANK[::-1][other.id[:4]])
    assert_same(one, other._replace(rank=one.rank))


def test_shapes_and_types_are_the_same_in_every_round():
    """A new shape or type would compile the round again."""
    plans = [make().plan(t, RANK, 0.1 * t) for t in range(6)]
    kinds = {tuple((x.shape, x.dtype) for x in map(np.asarray, leaves(p))) for p in plans}
    assert len(kinds) == 1
    assert len({tuple(p.batches.steps) for p in plans}) > 1
    plan = plans[0]
    assert [x.dtype for x in leaves(plan)[:5]] == [
        np.int32, np.int32, np.float32, np.float32, np.int32,
    ]  # fmt: skip
    assert plan.batches.index.shape == (6, 8, 4)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 8), ({"epochs": 2}, 16), ({"max_steps": 5}, 5), ({"batch": 30}, 1), ({"batch": 29}, 2)],
)
def test_padded_steps_are_those_of_the_largest_client(options, steps):
    assert make(**options).steps == steps


def test_clients_without_examples_are_refused():
    members = [np.arange(3), np.arange(0), np.arange(2), np.arange(0)]
    with pytest.raises(InputError, match=r"Clients \[1, 3\] have no training examples; ask for"):
        make(members=members)


def test_federation_record_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().seed = 1


def test_test_problem_matches_its_description():
    """Other tests rely on it: ragged clients, one with one example, several ranks."""
    plan = problems.plan_for(problems.bag())
    assert sorted(plan.batches.steps) == [1, 1, 2, 2, 3, 3]
    assert sorted(plan.weight) == [1, 3, 5, 7, 9, 12]
    assert set(plan.rank) == {1, 2, 3, 4}
    last = [int(plan.batches.valid[k, s - 1].sum()) for k, s in enumerate(plan.batches.steps)]
    assert sorted(last) == [1, 1, 1, 3, 3, 4]
