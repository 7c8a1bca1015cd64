"""The epsilon of a run with Gaussian noise, by Rényi differential privacy (``dp-accounting``).

Two federations are neighbours if one client's data is exchanged for other data (*replace one*),
which moves its clipped update by up to twice the norm: the Gaussian mechanism has the noise
multiplier ``multiplier / 2``. There are two answers, both for a client that never drops out (who
does, has sent less; and as every message carries its own noise, nobody's guarantee rests on others
answering):

* ``epsilon`` takes it that the client was drawn in every round. It holds against everybody, the
  server included, which sees who sends.
* ``epsilon_sampled`` takes the gain of drawing a cohort of a fixed size without repetition, by
  Theorem 27 of Wang, Balle and Kasiviswanathan, arXiv 1808.00087. It holds against those who see
  the models and cannot tell from them who took part. Clients of different ranks or weights may be
  told apart by them: if only one client has the last component, a change of it gives it away. So
  this number is a promise only where clients are alike. The theorem's bound is loose for large
  cohorts; where it is above ``epsilon``, which holds here too, that is the answer.

Papers often count a Poisson sample under *add or remove one* with ``multiplier`` itself: smaller
numbers about another kind of neighbour, not to be compared with these.
"""

from collections.abc import Callable, Sequence

from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.transforms.base import Noise, UpdateTransform

SENSITIVITY = 2.0
"""By how much exchanging a client can move its clipped update, in units of the norm."""


def make_privacy_report(
    updates: Sequence[UpdateTransform], *, cohort: int, clients: int
) -> Callable[[int], dict[str, float]]:
    """What to report after so many rounds: both epsilons, or ``{}`` without noise.

    Args:
      updates: those of the run.
      cohort: clients drawn per round.
      clients: all of them.

    Raises:
      InputError: there is noise, and ``dp-accounting`` is not installed.
    """
    noise = next((update.noise for update in updates if update.noise is not None), None)
    if noise is None:
        return lambda rounds: {}
    delta = 1 / clients if noise.delta is None else noise.delta
    always, sampled = (_epsilon(noise, size, clients, delta) for size in (clients, cohort))

    def report(rounds: int) -> dict[str, float]:
        most = always(rounds)
        return {"epsilon": most, "epsilon_sampled": min(most, sampled(rounds))}

    return report


def _epsilon(noise: Noise, cohort: int, clients: int, delta: float) -> Callable[[int], float]:
    """Epsilon after so many rounds. Divergences add up, so one round is composed only once."""
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
    orders, once = accountant.orders.tolist(), accountant.rdp
    return lambda rounds: float(rdp.compute_epsilon(orders, (rounds * once).tolist(), delta)[0])
