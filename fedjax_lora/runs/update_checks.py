"""Checks of what a run does to updates against the rest of the run, and its report of privacy."""

from collections.abc import Callable

from fedjax_lora import federated, methods
from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated import ranks, transforms
from fedjax_lora.methods import Method
from fedjax_lora.runs.choices import Choices
from fedjax_lora.runs.client_work import Fleet
from fedjax_lora.runs.config import RunConfig


def check_updates(config: RunConfig, choices: Choices, method: Method) -> None:
    """Refuse update transforms and a server optimizer that do not go with the method.

    Raises:
      InputError: they do not.
    """
    fed = config.federation
    transforms.check_transforms(choices.updates, fed.updates, method)
    options = registry.with_defaults(fed.method, methods.METHODS, "method")
    if any(x.reweighs for x in choices.updates) and options.get("weights") != "examples":
        raise InputError(
            f"Update 'geometric_median' gives clients new weights, and method {fed.method!r} does "
            "not weigh clients by them; take a method with weights='examples', or krum."
        )
    if choices.server_optimizer is not None:
        transforms.check_method_averages(method, f"Server optimizer {fed.server_optimizer!r}")


def privacy_report(
    config: RunConfig,
    choices: Choices,
    allocation: ranks.Allocation,
    execution: federated.Execution,
    fleet: Fleet | None,
) -> Callable[[int], dict[str, float]]:
    """Return the report of the privacy spent.

    Real clients know who takes part in a round, so that sampling hides nobody; and where the server
    does not wait, the speed of a client decides in which rounds it is.

    Raises:
      InputError: noise with cohorts that are not drawn as the report assumes, or with ranks that
        the clients' data decide.
    """
    fed = config.federation
    drawn = choices.deadline.drawn(fed.cohort, fed.clients)
    report = transforms.make_privacy_report(choices.updates, cohort=drawn, clients=fed.clients)
    if report(1) and fed.sampling != "uniform":
        raise InputError(
            f"The privacy of noise is counted for uniform sampling, and this run has "
            f"sampling={fed.sampling!r}; leave it out, or leave out the noise."
        )
    if report(1) and fleet is not None and fleet.devices.availability.min() < 1:
        raise InputError(
            "The privacy of noise is counted for cohorts drawn from all clients, and these device "
            "profiles have clients that are not always available; give profiles an availability of "
            "1, or leave out the noise."
        )
    if report(1) and allocation.schedule is not None and allocation.schedule.needs_validation:
        raise InputError(
            "Rank allocation 'loss_based' reads clients' models without noise, and ranks then tell "
            "of their data, so that noise on the updates protects nothing; take other ranks "
            "(order='random' does not score), or leave out the noise."
        )
    if execution.mode == "remote" or choices.server is not None:
        return lambda rounds: {n: x for n, x in report(rounds).items() if n == "epsilon"}
    return report
