"""Initial allocation of ranks to clients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.core.errors import InputError
from fedjax_lora.federated import ranks as rank_rules
from fedjax_lora.federated.ranks import ALLOCATIONS

QUALITY = np.array([True, False, False, True])
SIZE = 1536  # numbers in a component: 4 * SIZE bytes of a message, 16 * SIZE of memory
CAPACITY = rank_rules.Capacity(
    seconds=lambda rank: rank * np.array([1.0, 2.0, 0.5, 9.0]),
    memory=lambda rank: 10.0 * rank,
    limit=np.array([99.0, 99.0, 25.0, 10.0]),
    deadline=np.inf,
)
"""Of four devices: two that are limited by time, one by memory, and one that is late with any."""


def allocate(spec: str, **given) -> np.ndarray:
    return rank_rules.allocate(spec, component_size=SIZE, capacity=CAPACITY, **given).ranks


def test_fixed_gives_every_client_the_same_rank():
    assert allocate("fixed(rank=7)", clients=3, seed=0).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("shares", "counts"),
    [
        ("[0.9, 0.1]", {2: 90, 8: 10}),
        ("[0.905, 0.095]", {2: 91, 8: 9}),  # the larger remainder gets the client left over
        ("[9, 1]", {2: 90, 8: 10}),  # shares need not sum to one
        ("[1, 0]", {2: 100}),
        ("[0.29, 0.71]", {2: 29, 8: 71}),  # 0.29 * 100 is below 29 in floating point
    ],
)
def test_tier_sizes_match_exact_shares(shares, counts):
    got = allocate(f"tiers(ranks=[2, 8], shares={shares})", clients=100, seed=0)
    assert dict(zip(*np.unique(got, return_counts=True), strict=True)) == counts


def test_tiers_are_equal_by_default():
    got = allocate("tiers(ranks=[2, 4, 8])", clients=9, seed=0)
    assert sorted(got.tolist()) == [2, 2, 2, 4, 4, 4, 8, 8, 8]


@given(
    shares=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any),
    clients=st.integers(1, 60),
)
@settings(deadline=None)
def test_tiers_are_within_one_of_their_share(shares, clients):
    ranks = list(range(1, len(shares) + 1))
    got = allocate(f"tiers(ranks={ranks}, shares={shares})", clients=clients, seed=0)
    assert len(got) == clients
    for rank, share in zip(ranks, shares, strict=True):
        exact = clients * share / sum(shares)
        assert abs(np.sum(got == rank) - exact) < 1


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("uniform", {1: 8, 2: 8, 4: 7, 8: 7}),
        ("heavy_tail", {1: 16, 2: 8, 4: 4, 8: 2}),
        ("normal", {1: 4, 2: 11, 4: 11, 8: 4}),  # of 3.75, 11.25, 11.25, 3.75
    ],
)
def test_named_shares_give_their_tier_sizes(name, counts):
    got = allocate(f"tiers(ranks=[1, 2, 4, 8], shares='{name}')", clients=30, seed=0)
    assert dict(zip(*np.unique(got, return_counts=True), strict=True)) == counts


def test_tiers_are_assigned_at_random():
    spec = "tiers(ranks=[2, 8])"
    orders = {tuple(allocate(spec, clients=20, seed=seed)) for seed in range(5)}
    assert len(orders) == 5


def test_random_ranks_are_uniform_including_both_bounds():
    got = allocate("random(low=2, high=5)", clients=4000, seed=0)
    values, counts = np.unique(got, return_counts=True)
    assert values.tolist() == [2, 3, 4, 5]
    assert np.all(np.abs(counts - 1000) < 130)  # 4.7 standard deviations
    assert allocate("random(low=3, high=3)", clients=4, seed=1).tolist() == [3] * 4


def test_table_gives_each_client_its_listed_rank():
    assert allocate("table(ranks=[3, 1, 2])", clients=3, seed=5).tolist() == [3, 1, 2]


def test_by_quality_gives_high_rank_to_high_quality_clients():
    got = allocate("by_quality(low=5, high=20)", clients=4, seed=0, quality=QUALITY)
    assert got.tolist() == [20, 5, 5, 20]


def test_by_device_is_limited_by_time_and_by_memory():
    assert allocate("by_device(high=4, seconds=3)", clients=4, seed=0).tolist() == [3, 1, 2, 1]
    assert allocate("by_device(high=4)", clients=4, seed=0).tolist() == [4, 4, 2, 1]


def largest_fitting(budget: float, cost: int, high: int) -> int:
    return max(r for r in range(1, high + 1) if r * cost <= budget)


@given(
    budgets=st.lists(st.integers(64 * SIZE, 2000 * SIZE), min_size=1, max_size=5, unique=True),
    high=st.integers(1, 40),
)
@settings(deadline=None)
def test_memory_budget_is_filled_with_whole_components(budgets, high):
    for of, numbers in (("message", 1), ("memory", 4)):  # value, gradient, two moments
        cost = 4 * numbers * SIZE
        spec = f"budget(bytes={budgets}, high={high}, of='{of}')"
        got = allocate(spec, clients=3 * len(budgets), seed=0)
        want = [largest_fitting(budget, cost, high) for budget in budgets for _ in range(3)]
        assert sorted(got) == sorted(want)


def test_memory_budget_of_exactly_one_component_gives_rank_one():
    exact, short = (f"budget(bytes=[{n}], high=9)" for n in (20 * SIZE, 20 * SIZE - 1))
    assert allocate(exact, clients=2, seed=0).tolist() == [5, 5]
    assert allocate(short, clients=2, seed=0).tolist() == [4, 4]


def test_memory_budgets_are_assigned_by_shares():
    spec = f"budget(bytes=[{8 * SIZE}, {32 * SIZE}], high=100, shares=[0.75, 0.25])"
    tiers = "tiers(ranks=[2, 8], shares=[0.75, 0.25])"
    got, want = (allocate(x, clients=20, seed=4).tolist() for x in (spec, tiers))
    assert got == want


def test_loss_based_starts_at_the_low_rank_and_declares_the_high_one():
    made = rank_rules.allocate(
        "loss_based(low=5, high=20, share=0.1)", clients=6, seed=0, component_size=1
    )
    assert made.ranks.tolist() == [5] * 6
    assert set(made.possible.tolist()) == {5, 20}


EVERY = [
    "fixed(rank=2)",
    "tiers(ranks=[2, 4])",
    "random(low=1, high=9)",
    "table(ranks=[1, 2, 3, 4])",
    "by_quality(low=1, high=2)",
    "budget(bytes=[1e5, 1e6], high=16)",
    "by_device(high=4, seconds=3)",
    "loss_based(low=1, high=2, share=0.5)",
]


@pytest.mark.parametrize("spec", EVERY)
def test_ranks_are_determined_by_the_seed(spec):
    one, two = (allocate(spec, clients=4, seed=3, quality=QUALITY) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.dtype == np.int32 and one.shape == (4,)


def test_every_rule_is_tested():
    assert {spec.partition("(")[0] for spec in EVERY} == set(ALLOCATIONS)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("fixd(rank=2)", "did you mean 'fixed'"),
        ("fixed", "needs the option rank"),
        ("fixed(rnk=2)", "'rnk'"),
        ("fixed(rank=0)", "whole numbers from 1 to 2147483647"),
        ("fixed(rank=-4)", "whole numbers from 1 to 2147483647"),
        ("fixed(rank=2.5)", "rank is int, got 2.5"),
        ("fixed(rank=True)", "rank is int, got True"),
        ("fixed(rank=3000000000)", "whole numbers from 1 to 2147483647"),
        ("fixed(rank=10000000000000000000000)", "whole numbers from 1 to 2147483647"),
        ("tiers(ranks=[])", "as many non-negative shares as ranks"),
        ("tiers(ranks=[2, 4], shares=[1])", "as many non-negative shares as ranks"),
        ("tiers(ranks=[2, 4], shares=[2, -1])", "as many non-negative shares as ranks"),
        ("tiers(ranks=[2, 4], shares=[0, 0])", "as many non-negative shares as ranks"),
        ("tiers(ranks=[2, 4], shares=[1e400, 1])", "with a finite sum above 0"),
        ("tiers(ranks=[2, 0])", "whole numbers from 1 to 2147483647"),
        ("tiers(ranks=['a', 'b'])", "ranks is"),
        ("tiers(ranks=3)", "ranks is"),
        ("random(low=4, high=2)", "low <= high, both from 1 to 2147483647, got 4 and 2"),
        ("random(low=1, high=3000000000)", "both from 1 to 2147483647, got 1 and 3000000000"),
        ("random(low=0, high=2)", "whole numbers from 1 to 2147483647"),
        ("random(low=1)", "needs the option high"),
        ("table(ranks=[1, 2])", "lists 2 ranks for 4 clients"),
        ("table(ranks=[1, 2, 3, 0])", "whole numbers from 1 to 2147483647"),
        ("table(ranks=[[1], [2], [3], [4]])", "ranks is"),
        ("by_quality(low=1, high=2)", "needs the partition 'quality(...)'"),
        ("by_quality(low=1, high=2, quality=[1, 0, 1, 0])", "'quality'"),
        ("by_device(high=2, low=3)", "1 <= low <= high"),
        ("by_device(high=2, low=2)", "client 3 has 10 bytes of memory and rank 2 needs 20"),
        ("by_device(high=2, seconds=0)", "needs seconds above 0"),
        ("fixed(rank=2, clients=9)", "'clients'"),
        ("fixed(rank=2, population=9)", "'population'"),
        ("tiers(ranks=[2, 4], shares='pareto')", "shares is"),
        ("tiers(ranks=[], shares='normal')", "as many non-negative shares as ranks"),
        (
            "budget(bytes=[1e6, 6143], high=4)",
            "6143 bytes of message hold 0 components of 6144 bytes, but every client needs at "
            "least 1.",
        ),
        ("budget(bytes=[6144], high=4, of='memory')", "hold 0 components of 24576 bytes"),
        ("budget(bytes=[-5], high=4)", "hold 0 components"),
        ("budget(bytes=[13000], low=3, high=4)", "hold 2 components of 6144 bytes"),
        ("budget(bytes=[], high=4)", "as many non-negative shares as bytes"),
        ("budget(bytes=[1e6], low=5, high=4)", "1 <= low <= high, got 5 and 4"),
        ("budget(bytes=[1e6], low=0, high=4)", "1 <= low <= high, got 0 and 4"),
        ("budget(bytes=1000, high=4)", "bytes is"),
        ("budget(bytes=[1e6], high=4, of='disk')", "one of 'message', 'memory', got 'disk'"),
        ("loss_based(low=5, high=4, share=0.5)", "low <= high, got 5 and 4"),
        ("loss_based(low=0, high=4, share=0.5)", "whole numbers from 1 to 2147483647"),
        ("loss_based(low=1, high=3000000000, share=0.5)", "whole numbers from 1 to 2147483647"),
        ("loss_based(low=1, high=4, share=0)", "share in (0, 1], got 0"),
        ("loss_based(low=1, high=4, share=1.5)", "share in (0, 1], got 1.5"),
        ("loss_based(low=1, high=4, share=0.5, every=0)", "every of at least 1, got 0"),
        ("loss_based(low=1, high=4, share=0.5, score='f1')", "one of 'loss', 'accuracy'"),
        ("loss_based(low=1, high=4, share=0.5, order='first')", "one of 'best', 'worst'"),
    ],
)
def test_invalid_options_are_refused_in_one_sentence(spec, words):
    with pytest.raises(InputError) as error:
        allocate(spec, clients=4, seed=0)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
