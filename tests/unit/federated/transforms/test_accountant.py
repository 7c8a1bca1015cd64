"""Epsilon of differential privacy: closed form, exact value, and its dependence on the options."""

import sys

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from fedjax_lora import InputError
from fedjax_lora.federated import transforms
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
    assert got["epsilon"] == got["epsilon_sampled"]
    best = renyi(sigma, 1e-3)
    assert best * (1 - 1e-6) <= got["epsilon"] <= best * 1.01  # a finite list of orders
    assert exact(sigma, 1e-3) <= got["epsilon"] <= 1.35 * exact(sigma, 1e-3)


def test_epsilon_grows_with_rounds_and_shrinks_with_sampling():
    one, ten = (report(4.0, t, cohort=5, clients=100) for t in (1, 10))
    assert 0 < one["epsilon_sampled"] < one["epsilon"]
    assert 0 < ten["epsilon_sampled"] < ten["epsilon"]
    assert all(one[name] < ten[name] < 10 * one[name] for name in one)
    half = report(4.0, 10, cohort=50, clients=100)
    assert ten["epsilon_sampled"] < half["epsilon_sampled"] < half["epsilon"] == ten["epsilon"]


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
