"""Privacy accounting: the epsilon of a run with Gaussian noise, by Rényi differential privacy.

Two federations are neighbours if one client's data is replaced by other data (*replace one*), which
moves its clipped update by up to twice the norm: the Gaussian mechanism has the noise multiplier
``multiplier / 2``. Two epsilons are reported, both for a client that never drops out. (A client
that drops out has sent less; and because every message carries its own noise, no client's guarantee
depends on the messages of others.)

* ``epsilon`` assumes that the client was sampled in every round. It holds against any observer,
  also against the server, which sees which clients send.
* ``epsilon_sampled`` includes the privacy amplification of sampling a cohort of a fixed size
  without replacement, by Theorem 27 of Wang, Balle and Kasiviswanathan, arXiv 1808.00087. It holds
  against observers who see only the models and cannot infer from them which clients took part.
  Models may reveal clients of different ranks or weights: if only one client trains the last
  component, a change of that component reveals that it took part. This number is therefore a
  guarantee only if all clients have the same rank and weight. The theorem's bound is loose for
  large cohorts; where it exceeds ``epsilon``, ``epsilon`` is reported, which holds here too.

Papers often report a Poisson sample under *add or remove one* with ``multiplier`` itself. Those
numbers are smaller, are about another neighbouring relation, and cannot be compared with these.

The accountant is that of ``dp-accounting``.
"""

from collections.abc import Callable, Sequence

from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.transforms.base import Noise, UpdateTransform

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
      ``report(rounds)``: ``epsilon`` and ``epsilon_sampled`` after so many rounds, or ``{}`` if no
      transform adds noise.

    Raises:
      InputError: a transform adds noise, and ``dp-accounting`` is not installed.
    """
    noise = next((update.noise for update in updates if update.noise is not None), None)
    if noise is None:
        return lambda rounds: {}
    delta = 1 / clients if noise.delta is None else noise.delta
    unsampled, sampled = (_epsilon(noise, size, clients, delta) for size in (clients, cohort))

    def report(rounds: int) -> dict[str, float]:
        epsilon = unsampled(rounds)
        return {"epsilon": epsilon, "epsilon_sampled": min(epsilon, sampled(rounds))}

    return report


def _epsilon(noise: Noise, cohort: int, clients: int, delta: float) -> Callable[[int], float]:
    """Make the function from rounds to epsilon; Rényi divergences add up over rounds."""
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError as error:
        raise InputError(
            "Update 'gaussian_noise' needs the package dp-accounting to count epsilon; install "
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
