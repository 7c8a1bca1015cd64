"""Mode remote: a cohort that is trained elsewhere, and clients that do not answer."""

import jax
import numpy as np
import pytest

from fedjax_lora import federated, methods
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated import Execution
from tests._helpers import problems
from tests._helpers.problems import assert_same_bits, bag_rounds, ranks_for


def play(method: str, mode: str, count: int = 2):
    """The state after some rounds, and what each of them reported."""
    made, fed, reports = bag_rounds(method, mode), problems.round_federation(), []
    state = made.state()
    for t in range(count):
        state, seen = made.run(state, fed.plan(t, ranks_for(method), 0.01))
        reports.append(problems.copy(seen))
    return problems.copy(state), reports, made


@pytest.mark.slow
@pytest.mark.parametrize("method", list(methods.METHODS))
def test_a_remote_cohort_gives_the_bits_of_a_simulated_one(method):
    want, reports, made = play(method, "vmap of one")
    got, seen, _ = play(method, "remote")
    assert problems.changed(want.server, made.begin.server)
    assert_same_bits(got, want)
    for one, other in zip(seen, reports, strict=True):
        assert_same_bits(one._replace(silent=()), other)
        assert not np.any(one.silent)


def quadratic(silent=()):
    """A round of gradient descent, and one in which some clients never answer."""
    method = methods.make("zero_padding", problems.STUB)
    made = problems.stub_rounds("quadratic", method=method)
    train = federated.LocalTraining(problems.quadratic(), federated.optimizers.optimizer("sgd"))
    execution = Execution(mode="remote", exchange=problems.one_by_one(method, train, silent))
    return method, made, federated.compile_round(method, train, execution=execution)


def test_a_silent_client_has_no_influence_and_is_reported():
    _, made, remote = quadratic(silent={4})
    plan = problems.federation(problems.bag().data).plan(0, np.full(6, 2), 0.1)
    without = plan._replace(weight=np.where(plan.id == 4, 0, plan.weight))
    key = jax.random.key(0)
    got, seen = remote(made.base, made.data, made.state(), plan, key)
    want, _ = made.run(made.state(), without)
    problems.assert_close(got, want)
    assert plan.id[np.asarray(seen.silent)].tolist() == [4]
    assert not np.any(seen.rejected)
    assert np.asarray(seen.loss)[plan.id == 4] == 0


def test_a_round_without_any_answer_changes_nothing():
    _, made, remote = quadratic(silent=set(range(6)))
    plan = problems.federation(problems.bag().data).plan(0, np.full(6, 2), 0.1)
    got, seen = remote(made.base, made.data, made.state(), plan, jax.random.key(0))
    assert_same_bits(problems.copy(got), made.begin)
    assert np.all(seen.silent)


def test_mode_remote_needs_an_exchange():
    with pytest.raises(InputError, match="needs an exchange"):
        Execution(mode="remote")


def test_client_transforms_are_left_to_the_clients():
    """In a round of real clients, the server applies its own transforms alone."""
    method, made, _ = quadratic()
    train = federated.LocalTraining(problems.quadratic(), federated.optimizers.optimizer("sgd"))
    execution = Execution(mode="remote", exchange=problems.one_by_one(method, train))
    updates = federated.transforms.make_transforms(["clip(norm=1e-9)"], method)
    clipped = federated.compile_round(method, train, execution=execution, updates=updates)
    plan = problems.federation(problems.bag().data).plan(0, np.full(6, 2), 0.1)
    got, _ = clipped(made.base, made.data, made.state(), plan, jax.random.key(0))
    want, _ = made.run(made.state(), plan)
    problems.assert_close(got.head, want.head)
