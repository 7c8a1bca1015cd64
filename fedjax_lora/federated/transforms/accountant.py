"""Privacy accounting: the epsilon of a run with Gaussian noise, by Rényi differential privacy.

Two federations are neighbours if one client's data is replaced by other data (*replace one*), which
moves its clipped update by up to twice the norm: the Gaussian mechanism has the noise multiplier
``multiplier / 2``. Two epsilons are reported, both for a client that never drops out. (A client
that drops out has sent less; and because every message carries its own noise, no client's guarantee
depends on the messages of others.)

* ``epsilon`` assumes that the client was sampled in every round. It holds against any observer,
  also against the server, which sees which clients send.
* ``epsilon_if_cohorts_stay_secret`` (``epsilon_sampled`` in records of earlier versions) includes
  the privacy amplification of sampling a cohort of a fixed size without replacement, by Theorem
  27 of Wang, Balle and Kasiviswanathan, arXiv 1808.00087. It holds against observers who see only
  the models and cannot infer from them which clients took part. Models may reveal clients of
  different ranks or weights: if only one client trains the last component, a change of that
  component reveals that it took part. This number is therefore a guarantee only if all clients
  have the same rank and weight. The theorem's bound is loose for large cohorts; where it exceeds
  ``epsilon``, ``epsilon`` is reported, which holds here too.

Papers often report a Poisson sample under *add or remove one* with ``multiplier`` itself. Those
numbers are smaller, are about another neighbouring relation, and cannot be compared with these.

The accountant is that of ``dp-accounting``.
"""

import math
from collections.abc import Callable, Sequence

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.transforms.base import Noise, UpdateTransform

SECRET_COHORTS = "epsilon_if_cohorts_stay_secret"
"""Name of the epsilon that no one should quote without its condition."""

LEAST_MULTIPLIER, LARGEST_MULTIPLIER = 1e-2, 1e6
"""Multipliers among which one is looked for."""

SENSITIVITY = 2.0
"""Largest change of a clipped update when a client's data is replaced, in units of the norm."""


def make_privacy_report(
    updates: Sequence[UpdateTransform], *, cohort: int, clients: int
) -> Callable[[int], dict[str, float]]:
    """Make the function that reports the epsilons spent so far.

    Args:
      updates: update transforms of the run.
      cohort: clients sampled per round.
      clients: number of clients `N`.

    Returns:
      ``report(rounds)``: ``epsilon`` and ``epsilon_if_cohorts_stay_secret`` after so many rounds,
      or ``{}`` if no transform adds noise.

    Raises:
      InputError: a transform adds noise, and ``dp-accounting`` is not installed, or delta is that
        of a single client.
    """
    noise = next((update.noise for update in updates if update.noise is not None), None)
    if noise is None:
        return lambda rounds: {}
    delta = _delta(noise.delta, clients)
    unsampled, sampled = (_epsilon(noise, size, clients, delta) for size in (clients, cohort))

    def report(rounds: int) -> dict[str, float]:
        epsilon = unsampled(rounds)
        return {"epsilon": epsilon, SECRET_COHORTS: min(epsilon, sampled(rounds))}

    return report


def affordable_rounds(
    updates: Sequence[UpdateTransform], report: Callable[[int], dict[str, float]], rounds: int
) -> int:
    """Return how many of a run's rounds its budget of epsilon lets happen; all without a budget.

    Args:
      updates: update transforms of the run.
      report: of `make_privacy_report`.
      rounds: rounds of the run.

    Raises:
      InputError: not a single one.
    """
    budgets = [x.noise.budget for x in updates if x.noise is not None and x.noise.budget]
    if not budgets:
        return rounds
    if report(1)["epsilon"] > budgets[0]:
        raise InputError(
            f"The noise on updates spends an epsilon of {report(1)['epsilon']:.3g} in the "
            f"first round, and the budget is {budgets[0]:g}; give a larger multiplier or budget."
        )
    low, high = 1, rounds + 1  # affordable, and not known to be
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if report(middle)["epsilon"] <= budgets[0] else (low, middle)
    return low


def multiplier_for(
    epsilon: float, *, rounds: int, clients: int, delta: float | None = None
) -> float:
    """Return the smallest noise multiplier with which so many rounds spend at most an epsilon.

    It is that of the ``epsilon`` which holds against everyone, of a client in every round.

    >>> round(multiplier_for(8.0, rounds=10, clients=100), 2)
    2.85

    Args:
      epsilon: above 0.
      rounds: in which a client may take part.
      clients: number of clients `N`, which decides the default of delta.
      delta: of the guarantee.

    Raises:
      InputError: an epsilon that is not above 0 or too small for any noise, or ``dp-accounting`` is
        not installed.
    """
    if not 0 < epsilon < math.inf:
        raise InputError(f"Noise on updates needs an epsilon above 0 and finite, got {epsilon}.")
    delta = _delta(delta, clients)

    def spent(multiplier: float) -> float:
        return _epsilon(Noise(multiplier, delta), clients, clients, delta)(rounds)

    low, high = LEAST_MULTIPLIER, LARGEST_MULTIPLIER
    if spent(high) > epsilon:
        raise InputError(
            f"No noise multiplier up to {high:g} spends as little as epsilon {epsilon:g} in "
            f"{rounds} rounds; give a larger epsilon or fewer rounds."
        )
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high


def with_multipliers(specs: Sequence[str], *, rounds: int, clients: int) -> tuple[str, ...]:
    """Return the specs of a run's updates, an epsilon replaced by the multiplier that it needs.

    Args:
      specs: as in a config.
      rounds: rounds of the run.
      clients: number of clients `N`.

    Raises:
      InputError: as `multiplier_for`.
    """

    def calibrated(spec: str) -> str:
        name, options = registry.parse(spec, "update")
        if options.get("epsilon") is None or options.get("multiplier") is not None:
            return spec
        epsilon, delta = options.pop("epsilon"), options.get("delta")
        multiplier = multiplier_for(epsilon, rounds=rounds, clients=clients, delta=delta)
        words = [
            f"{key}={value!r}" for key, value in (options | {"multiplier": multiplier}).items()
        ]
        return f"{name}({', '.join(words)})"

    return tuple(map(calibrated, specs))


def _delta(delta: float | None, clients: int) -> float:
    if delta is None and clients == 1:
        raise InputError(
            "Noise on updates needs a delta: its default of one over the number of clients "
            "is 1 for a single client, at which anything is private."
        )
    return 1 / clients if delta is None else delta


def _epsilon(noise: Noise, cohort: int, clients: int, delta: float) -> Callable[[int], float]:
    """Make the function from rounds to epsilon; Rényi divergences add up over rounds."""
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError as error:
        raise InputError(
            "Noise on updates needs the package dp-accounting to count epsilon; install "
            "fedjax-lora[privacy]."
        ) from error
    relation = dp_accounting.NeighboringRelation.REPLACE_ONE
    accountant = rdp.RdpAccountant(neighboring_relation=relation)
    mechanism = dp_accounting.GaussianDpEvent(noise.multiplier / SENSITIVITY)
    accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(clients, cohort, mechanism))
    orders, per_round = accountant.orders.tolist(), accountant.rdp
    return lambda rounds: float(
        rdp.compute_epsilon(orders, (rounds * per_round).tolist(), delta)[0]
    )
