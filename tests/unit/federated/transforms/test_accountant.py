"""Epsilon of differential privacy: closed form, exact value, and its dependence on the options."""

import sys

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from fedjax_lora import InputError
from fedjax_lora.federated import transforms
from fedjax_lora.federated.transforms.accountant import SECRET_COHORTS
from tests._helpers.client_messages import spec


def report(multiplier, rounds=1, *, cohort=10, clients=10, delta=1e-3):
    """Norms do not matter; whatever surrounds the noise does not either."""
    text = f"gaussian_noise(multiplier={multiplier}, norm=7.0, delta={delta})"
    updates = [spec("clip(norm=1.0)"), spec(text), spec("int8")]
    return transforms.make_privacy_report(updates, cohort=cohort, clients=clients)(rounds)


def renyi(sigma, delta):
    """Canonne, Kamath and Steinke, arXiv 2004.00010, Proposition 12, the best order."""
    order = 1 + np.geomspace(1e-2, 1e4, 100_000)
    bound = order / (2 * sigma**2) + np.log1p(-1 / order) - np.log(delta * order) / (order - 1)
    return bound.min()


def exact(sigma, delta):
    """Balle and Wang, arXiv 1805.06530: the smallest epsilon of one Gaussian mechanism."""
    tail = scipy.stats.norm.cdf

    def excess(epsilon):
        half, shift = 1 / (2 * sigma), epsilon * sigma
        return tail(half - shift) - np.exp(epsilon) * tail(-half - shift) - delta

    return scipy.optimize.brentq(excess, 0, 100)


@pytest.mark.parametrize("multiplier", [1.0, 2.0, 6.0])
@pytest.mark.parametrize("rounds", [1, 9])
def test_full_participation_equals_one_gaussian_mechanism(multiplier, rounds):
    """Of deviation half the multiplier, since exchanging a client moves twice the norm."""
    sigma = multiplier / 2 / rounds**0.5
    got = report(multiplier, rounds)
    assert got["epsilon"] == got[SECRET_COHORTS]
    best = renyi(sigma, 1e-3)
    assert best * (1 - 1e-6) <= got["epsilon"] <= best * 1.01  # a finite list of orders
    assert exact(sigma, 1e-3) <= got["epsilon"] <= 1.35 * exact(sigma, 1e-3)


def test_epsilon_grows_with_rounds_and_shrinks_with_sampling():
    one, ten = (report(4.0, t, cohort=5, clients=100) for t in (1, 10))
    assert 0 < one[SECRET_COHORTS] < one["epsilon"]
    assert 0 < ten[SECRET_COHORTS] < ten["epsilon"]
    assert all(one[name] < ten[name] < 10 * one[name] for name in one)
    half = report(4.0, 10, cohort=50, clients=100)
    assert ten[SECRET_COHORTS] < half[SECRET_COHORTS] < half["epsilon"] == ten["epsilon"]


def test_default_delta_is_one_over_the_number_of_clients():
    update = spec("gaussian_noise(multiplier=3.0, norm=1.0)")
    got = transforms.make_privacy_report([update], cohort=5, clients=50)(2)
    assert got == report(3.0, 2, cohort=5, clients=50, delta=1 / 50)
    assert got["epsilon"] < report(3.0, 2, cohort=5, clients=50, delta=1e-6)["epsilon"]


def test_without_noise_epsilon_is_not_reported():
    assert transforms.make_privacy_report([spec("clip(norm=1.0)")], cohort=1, clients=2)(5) == {}


def test_missing_accountant_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"install fedjax-lora\[privacy\]"):
        report(1.0)


@pytest.mark.parametrize(("epsilon", "rounds"), [(0.5, 1), (8.0, 20)])
def test_multiplier_is_the_smallest_for_an_epsilon(epsilon, rounds):
    multiplier = transforms.multiplier_for(epsilon, rounds=rounds, clients=10, delta=1e-3)
    assert epsilon * 0.999 < report(multiplier, rounds)["epsilon"] <= epsilon
    assert report(multiplier * 0.999, rounds)["epsilon"] > epsilon
    text = f"gaussian_noise(norm=0.5, epsilon={epsilon}, delta=1e-3)"
    (got, other) = transforms.with_multipliers([text, "int8"], rounds=rounds, clients=10)
    assert spec(got).noise.multiplier == multiplier and other == "int8"


def test_privacy_budget_limits_the_number_of_rounds():
    text = "gaussian_noise(multiplier=3.0, norm=1.0, delta=1e-3, budget={})"
    spent = [report(3.0, t)["epsilon"] for t in range(1, 9)]
    for budget, rounds in ((spent[4], 5), (spent[4] * 0.999, 4), (spent[0], 1), (1e6, 8)):
        updates = [spec(text.format(budget))]
        told = transforms.make_privacy_report(updates, cohort=10, clients=10)
        assert transforms.affordable_rounds(updates, told, 8) == rounds
    assert transforms.affordable_rounds([spec("int8")], lambda rounds: {}, 8) == 8
    updates = [spec(text.format(spent[0] * 0.9))]
    told = transforms.make_privacy_report(updates, cohort=10, clients=10)
    with pytest.raises(InputError, match="in the first round, and the budget is"):
        transforms.affordable_rounds(updates, told, 8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: spec("gaussian_noise(norm=1.0)"), "needs a multiplier"),
        (lambda: spec("gaussian_noise(norm=1.0, epsilon=3.0)"), "needs a multiplier"),
        (
            lambda: spec("gaussian_noise(norm=1.0, multiplier=1.0, epsilon=3.0)"),
            "a multiplier or an epsilon, not both",
        ),
        (lambda: spec("gaussian_noise(norm=1.0, multiplier=1.0, budget=0.0)"), "budget above 0"),
        (lambda: transforms.multiplier_for(0.0, rounds=1, clients=9), "epsilon above 0"),
        (
            lambda: transforms.multiplier_for(1e-3, rounds=9, clients=9, delta=1e-9),
            "No noise multiplier up to",
        ),
        (
            lambda: transforms.make_privacy_report(
                [spec("gaussian_noise(norm=1.0, multiplier=1.0)")], cohort=1, clients=1
            ),
            "1 for a single client, at which anything is private",
        ),
    ],
)
def test_uncountable_privacy_options_are_refused_in_one_sentence(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value) and "\n" not in str(caught.value)
