"""Simultaneous intervals, Holm's method and power, against SciPy and simulation."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from experiments.tools import markdown, statistics
from experiments.tools import power as undecided
from experiments.tools.claims import UNTESTABLE
from experiments.tools.statistics import holm, power, seeds_for, simultaneous


def draws(count: int, seeds: int = 5, shift: float = 0.0) -> dict[str, list[float]]:
    rng = np.random.default_rng(count)
    common = rng.normal(size=seeds)  # as arms that share seeds have
    return {f"{n}": (shift + rng.normal(size=seeds) + common).tolist() for n in range(count)}


def test_intervals_are_student_intervals_at_the_level_of_the_family():
    family = draws(4)
    for name, found in simultaneous(family).items():
        of = scipy.stats.ttest_1samp(family[name], 0).confidence_interval(1 - 0.05 / 4)
        assert (found.low, found.high) == (pytest.approx(of.low), pytest.approx(of.high))
    assert simultaneous({}) == {}
    assert simultaneous(family, planned=9)["0"].half > simultaneous(family)["0"].half
    assert np.isnan(simultaneous({"one": [1.0]})["one"].half)


def test_a_family_is_wrong_anywhere_in_one_of_twenty_cases_at_most():
    """Of 10 differences that are all zero and share their seeds; separate intervals: far more."""
    rng = np.random.default_rng(0)
    cases = rng.normal(size=(500, 10, 5)) + rng.normal(size=(500, 1, 5))
    wrong = [
        any(f.low > 0 or f.high < 0 for f in simultaneous(dict(enumerate(case.tolist()))).values())
        for case in cases
    ]
    tests: Any = scipy.stats.ttest_1samp(cases, 0, axis=2)
    separate = tests.pvalue < 0.05
    assert np.mean(wrong) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 500)
    assert np.mean(separate.any(axis=1)) > 0.15


def test_holm_multiplies_the_smallest_by_all_and_never_decreases():
    family = draws(3, shift=1.0)
    tests: dict[str, Any] = {name: scipy.stats.ttest_1samp(x, 0) for name, x in family.items()}
    plain = {name: test.pvalue for name, test in tests.items()}
    first, second, third = sorted(plain, key=lambda name: plain[name])
    found = holm(family)
    assert found[first] == pytest.approx(min(1, 3 * plain[first]))
    assert found[second] == pytest.approx(max(found[first], min(1, 2 * plain[second])))
    assert found[third] == pytest.approx(max(found[second], plain[third]))
    assert [*found] == [*family]
    assert holm({"same": [0.5, 0.5, 0.5], "none": [0.0, 0.0]}) == {"same": 0.0, "none": 1.0}


def test_holm_finds_what_the_simultaneous_intervals_find():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        family = {n: rng.normal(n, 1.0, size=4).tolist() for n in range(4)}
        found = holm(family)
        for name, one in simultaneous(family).items():
            assert found[name] < 0.05 or one.low <= 0 <= one.high


@pytest.mark.parametrize("comparisons", [1, 10])
def test_power_is_the_share_of_simulated_studies_that_find_the_effect(comparisons: int):
    rng = np.random.default_rng(1)
    studies = rng.normal(2.0, 1.5, size=(20_000, 6))
    bound = scipy.stats.t.ppf(1 - 0.025 / comparisons, 5)
    t = studies.mean(1) / studies.std(1, ddof=1) * np.sqrt(6)
    want = np.mean(t > bound)
    got = power(1.5, 2.0, 6, comparisons=comparisons)
    assert got == pytest.approx(want, abs=4 * np.sqrt(0.25 / 20_000))


def test_the_number_of_seeds_is_the_first_that_has_the_power():
    for deviation in (0.5, 1.0, 3.0):
        n = seeds_for(deviation, 2.0)
        assert n is not None
        assert power(deviation, 2.0, n) >= 0.8
        assert n == 2 or power(deviation, 2.0, n - 1) < 0.8
    few, many = (seeds_for(1.0, 1.0, comparisons=n) for n in (1, 20))
    assert few is not None
    assert many is not None
    assert few < many
    assert seeds_for(0.0, 1.0) == 2
    assert statistics.seeds_for(100.0, 1.0) is None


@pytest.mark.slow  # reads all result files
def test_the_protocol_has_the_tables_of_the_committed_results():
    """All claims that the runs cannot tell are in one of the two."""
    open_claims = list(undecided.undecided())
    tables = undecided.table(), undecided.others()
    assert sum(len(t.splitlines()) - 2 for t in tables) == len(open_claims) > 0
    assert [markdown.read(name, undecided.PROTOCOL) for name in ("power", "no_seeds")] == [*tables]
    assert UNTESTABLE == "not testable here"
