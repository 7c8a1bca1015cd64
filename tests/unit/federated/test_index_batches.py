"""Index batches: every epoch has every example once, independent of all other clients."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.data.batch_shapes import length_buckets
from fedjax_lora.data.batching import client_batches, local_steps


@st.composite
def cohorts(draw):
    """Clients with shuffled, disjoint rows; the options of a round; a seed."""
    sizes = draw(st.lists(st.integers(0, 13), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    order = rng.permutation(max(1, sum(sizes)))
    members = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    length = rng.integers(1, 33, len(order))
    options = {
        "batch": draw(st.integers(1, 6)),
        "epochs": draw(st.integers(1, 3)),
        "max_steps": draw(st.none() | st.integers(1, 5)),
        "by_length": draw(st.booleans()),
    }
    return members, length, options, draw(st.integers(0, 99))


def make(members, length, options, seed, *, extra=0, **changed):
    options = options | changed
    most = max(
        local_steps(
            len(own), batch=options["batch"], epochs=options["epochs"], most=options["max_steps"]
        )
        for own in members
    )
    rngs = [np.random.default_rng([seed, k]) for k in range(len(members))]
    return client_batches(members, length, padded_steps=most + extra, rngs=rngs, **options)


def rows_of(batches, k, s):
    return batches.index[k, s][batches.valid[k, s]]


@given(cohorts())
@settings(deadline=None)
def test_every_epoch_visits_every_example_once(cohort):
    members, _, options, _ = cohort
    made = make(*cohort, max_steps=None)
    for k, own in enumerate(members):
        per_epoch = -(-len(own) // options["batch"])
        assert made.steps[k] == options["epochs"] * per_epoch
        for epoch in range(options["epochs"]):
            steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
            seen = np.concatenate([rows_of(made, k, s) for s in steps] or [own[:0]])
            assert sorted(seen) == sorted(own)


@given(cohorts())
@settings(deadline=None)
def test_one_batch_of_an_epoch_is_short_and_valid_rows_come_first(cohort):
    members, _, options, _ = cohort
    made = make(*cohort, max_steps=None)
    for k, own in enumerate(members):
        per_epoch, left = -(-len(own) // options["batch"]), len(own) % options["batch"]
        count = made.valid[k].sum(axis=1)[: made.steps[k]].reshape(-1, max(per_epoch, 1))
        for sizes in count:
            expected = [options["batch"]] * (len(own) // options["batch"]) + [left] * (left > 0)
            assert sorted(sizes, reverse=True) == expected
            if not options["by_length"]:
                assert sizes.tolist() == expected
    assert np.array_equal(made.valid, np.sort(made.valid, axis=2)[:, :, ::-1])


@given(cohorts())
@settings(deadline=None)
def test_max_steps_truncates_the_same_sequence_of_batches(cohort):
    members, _, options, _ = cohort
    whole, cut = make(*cohort, max_steps=None), make(*cohort)
    most = options["max_steps"]
    for k in range(len(members)):
        full = int(whole.steps[k])
        assert cut.steps[k] == (full if most is None else min(full, most))
        for s in range(int(cut.steps[k])):
            np.testing.assert_array_equal(rows_of(cut, k, s), rows_of(whole, k, s))


@given(cohorts())
@settings(deadline=None)
def test_steps_after_the_last_are_empty(cohort):
    made = make(*cohort, extra=2)
    after = np.arange(made.index.shape[1]) >= made.steps[:, None]
    for name in ("valid", "longest", "tokens"):
        assert not getattr(made, name)[after].any()
    plain = make(*cohort)
    for name in ("index", "valid", "longest", "tokens"):
        got, want = getattr(made, name), getattr(plain, name)
        np.testing.assert_array_equal(got[:, : want.shape[1]], want)


@given(cohorts())
@settings(deadline=None)
def test_steps_record_longest_text_and_token_count(cohort):
    members, length, _, _ = cohort
    made = make(*cohort)
    for k in range(len(members)):
        for s in range(int(made.steps[k])):
            own = length[rows_of(made, k, s)]
            assert (made.longest[k, s], made.tokens[k, s]) == (own.max(), own.sum())


@given(cohorts())
@settings(deadline=None)
def test_grouping_by_length_batches_the_sorted_examples(cohort):
    members, length, options, _ = cohort
    made = make(*cohort, max_steps=None, by_length=True)
    for k, own in enumerate(members):
        per_epoch = -(-len(own) // options["batch"])
        for epoch in range(options["epochs"]):
            batches = [rows_of(made, k, epoch * per_epoch + s) for s in range(per_epoch)]
            assert Counter(np.concatenate([own[:0], *batches])) == Counter(own)
            batches.sort(key=lambda rows: (length[rows].max(), length[rows].min()))
            for shorter, longer in itertools.pairwise(batches):
                assert length[shorter].max() <= length[longer].min()


@given(cohorts())
@settings(deadline=None)
def test_batches_depend_only_on_the_generators(cohort):
    members, length, options, seed = cohort
    one, two = make(*cohort), make(*cohort)
    for x, y in zip(one, two, strict=True):
        np.testing.assert_array_equal(x, y)
    # A client's batches do not depend on who else is in the cohort.
    last = len(members) - 1
    options = {**options, "padded_steps": one.index.shape[1]}
    alone = client_batches(
        members[last:], length, rngs=[np.random.default_rng([seed, last])], **options
    )
    for x, y in zip(one, alone, strict=True):
        np.testing.assert_array_equal(x[last], y[0])


@given(cohorts())
@settings(deadline=None)
def test_batch_padding_uses_rows_of_the_same_client(cohort):
    members, _, _, _ = cohort
    made = make(*cohort, extra=1)
    for k, own in enumerate(members):
        assert set(made.index[k].ravel()) <= (set(own) or {0})


def test_every_epoch_and_seed_has_its_own_order():
    options = {"batch": 20, "epochs": 3, "max_steps": None, "by_length": False}
    members, length = [np.arange(20)], np.ones(20, int)
    orders = [tuple(row) for s in (0, 1) for row in make(members, length, options, s).index[0]]
    assert len(set(orders)) == 6


def test_the_order_of_batches_grouped_by_length_is_random():
    options = {"batch": 2, "epochs": 1, "max_steps": None, "by_length": True}
    members, length = [np.arange(20)], np.arange(1, 21)
    orders = {tuple(make(members, length, options, s).index[0, :, 0]) for s in range(5)}
    assert len(orders) == 5
    assert all(sorted(order) == list(range(0, 20, 2)) for order in orders)


def test_each_client_needs_its_own_generator():
    with pytest.raises(ValueError, match="zip"):
        client_batches(
            [np.arange(2)] * 2, np.ones(2, int), batch=2, padded_steps=1,
            rngs=[np.random.default_rng(0)],
        )  # fmt: skip


def test_dtypes_are_those_of_jax_arrays():
    options = {"batch": 2, "epochs": 1, "max_steps": None, "by_length": False}
    made = make([np.arange(3)], np.ones(3, int), options, 0)
    assert [x.dtype for x in made] == [np.int32, np.bool_, np.int32, np.int32, np.int32]


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=40), st.integers(0, 50), st.integers(1, 5)
)
@settings(deadline=None)
def test_length_buckets_are_few_ascending_and_cover_all_lengths(lengths, room, most):
    longest = max(lengths) + room
    found = length_buckets(np.array(lengths), longest=longest, most=most)
    assert found == tuple(sorted(set(found))) and 1 <= len(found) <= most
    assert found[-1] == longest
    assert all(x % 8 == 0 for x in found[:-1])
    sizes = sorted({min(longest, -(-n // 8) * 8) for n in lengths} - {longest})
    others = [
        (*chosen, longest)
        for count in range(min(most, len(sizes) + 1))
        for chosen in itertools.combinations(sizes, count)
    ]
    padded = lambda buckets: sum(min(b for b in buckets if b >= n) for n in lengths)  # noqa: E731
    assert padded(found) == min(map(padded, others))


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "most", "steps"),
    [
        (0, 4, 1, None, 0),
        (1, 4, 1, None, 1),
        (4, 4, 1, None, 1),
        (5, 4, 3, None, 6),
        (5, 4, 3, 4, 4),
    ],
)
def test_local_steps_follow_examples_batch_epochs_and_limit(examples, batch, epochs, most, steps):
    assert local_steps(examples, batch=batch, epochs=epochs, most=most) == steps
