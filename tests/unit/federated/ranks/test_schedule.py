"""Ranks by score: who is scored when, and who is promoted."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.federated.ranks import ClientScores, RankSchedule, allocate


def review(clients: int = 10, **options) -> RankSchedule:
    given = {"low": 5, "high": 20, "share": 0.1} | options
    words = ", ".join(f"{key}={value!r}" for key, value in given.items())
    made = allocate(f"loss_based({words})", clients=clients, seed=3, component_size=1).schedule
    assert made is not None
    return made


def scores_of(values, rounds=None) -> ClientScores:
    rounds = np.zeros(len(values)) if rounds is None else rounds
    return ClientScores(np.asarray(values, float), np.asarray(rounds, np.int32))


# Few different values, so that there are ties.
LOSSES = st.lists(st.integers(0, 6), min_size=1, max_size=120)
TENTHS = st.integers(1, 100).map(lambda n: n / 100)


@given(losses=LOSSES, share=TENTHS)
@settings(deadline=None)
def test_exact_share_of_best_scored_clients_is_promoted(losses, share):
    rule = review(clients=len(losses), share=share)
    ranks = rule.ranks(scores_of(losses))
    count = math.ceil(Fraction(round(100 * share), 100) * len(losses))
    winners = [k for _, k in sorted((loss, k) for k, loss in enumerate(losses))][:count]
    assert np.flatnonzero(ranks == 20).tolist() == sorted(winners)
    assert np.sum(ranks == 5) == len(losses) - count
    assert ranks.dtype == np.int32


@pytest.mark.parametrize(
    ("share", "clients", "count"),
    [(0.1, 100, 10), (0.07, 100, 7), (0.1, 101, 11), (0.001, 5, 1), (1, 5, 5), (0.3, 10, 3)],
)
def test_shares_are_rounded_up_but_not_by_floating_point(share, clients, count):
    ranks = review(clients=clients, share=share).ranks(scores_of(np.arange(clients)))
    assert np.sum(ranks == 20) == count


def test_ties_go_to_the_smaller_id():
    ranks = review(clients=5, share=0.4).ranks(scores_of([2, 1, 1, 1, 2]))
    assert ranks.tolist() == [5, 20, 20, 5, 5]


LOSS = np.array([0.5, 0.1, 0.9, 0.3], np.float32)
ACCURACY = np.array([0.5, 0.6, 0.25, 0.75], np.float32)


@pytest.mark.parametrize(
    ("options", "winner"),
    [
        ({"score": "loss", "order": "best"}, 1),
        ({"score": "loss", "order": "worst"}, 2),
        ({"score": "accuracy", "order": "best"}, 3),
        ({"score": "accuracy", "order": "worst"}, 2),
    ],
)
def test_promotion_follows_the_configured_sort_order(options, winner):
    rule = review(clients=4, share=0.25, **options)
    ranks = rule.ranks(scores_of(rule.value(LOSS, ACCURACY)))
    assert np.flatnonzero(ranks == 20).tolist() == [winner]


@pytest.mark.parametrize("score", ["loss", "accuracy"])
@pytest.mark.parametrize("order", ["best", "worst"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_score_is_last_in_any_order(score, order, bad):
    rule = review(clients=4, share=0.75, score=score, order=order)
    loss = LOSS.copy()
    loss[1] = bad
    ranks = rule.ranks(scores_of(rule.value(loss, ACCURACY)))
    assert ranks.tolist() == [20, 5, 20, 20]


def test_random_order_is_uniform_and_depends_on_seed_and_round():
    rule = review(clients=10, share=0.3, order="random")
    assert not rule.needs_validation
    clients = np.arange(10)
    counts = np.zeros(10)
    for t in range(600):
        value = rule.draw(t, clients, 10)
        np.testing.assert_array_equal(rule.draw(t, clients[4:7], 10), value[4:7])
        ranks = rule.ranks(scores_of(value))
        assert np.sum(ranks == 20) == 3
        counts += ranks == 20
    assert np.all(np.abs(counts - 180) < 5 * np.sqrt(600 * 0.3 * 0.7))


def test_clients_without_a_score_stay_low_and_do_not_count():
    value = [np.nan, 9, 8, 7, 0, 6]
    rounds = [-1, 0, 0, 1, -1, 1]
    ranks = review(clients=6, share=0.5).ranks(scores_of(value, rounds))
    assert ranks.tolist() == [5, 5, 5, 20, 5, 20]


COHORT = np.array([7, 2, 5])


@pytest.mark.parametrize(
    ("options", "due"),
    [
        ({}, [10, 0, 0, 0, 0]),
        ({"every": 2}, [10, 0, 10, 0, 10]),
        ({"every": 1}, [10, 10, 10, 10, 10]),
        ({"scored": "cohort"}, [3, 0, 0, 0, 0]),
        ({"scored": "cohort", "every": 3}, [3, 0, 0, 3, 0]),
    ],
)
def test_number_of_clients_scored_per_round_follows_the_options(options, due):
    rule, scores = review(**options), ClientScores.initial(10)
    for t, count in enumerate(due):
        ids = rule.due(t, COHORT, scores)
        assert len(ids) == count
        assert set(ids) <= set(COHORT if options.get("scored") else range(10))
        scores = scores.updated(ids, np.zeros(len(ids)), t)


def test_a_client_is_scored_at_its_first_visit():
    rule = review(scored="cohort")
    scores = ClientScores.initial(10).updated(np.array([2, 9]), np.zeros(2), 0)
    assert rule.due(4, COHORT, scores).tolist() == [7, 5]


def test_scores_remember_their_round_and_are_not_changed_in_place():
    empty = ClientScores.initial(4)
    one = empty.updated(np.array([1, 3]), np.array([0.5, 0.25]), 2)
    assert not empty.is_scored().any() and not empty.has_round(-1)
    assert one.is_scored().tolist() == [False, True, False, True]
    assert [one.has_round(t) for t in (-1, 0, 1, 2, 3)] == [False, False, False, True, False]
    assert one.value[[1, 3]].tolist() == [0.5, 0.25]
