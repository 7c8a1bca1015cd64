"""Several federations in one program: each ends where it would have ended alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import federated, methods
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated import optimizers
from fedjax_lora.lora import LoraSpec, LoraTarget
from tests._helpers import problems
from tests._helpers.problems import bag_rounds, ranks_for
from tests._helpers.tolerances import TOLERANCE

SEEDS, RATES = (0, 1, 2), (0.01, 0.05, 0.003)

SPEC = LoraSpec(targets=(LoraTarget("layer", 6, 5, None),), rank=problems.R, alpha=4.0)


def moving() -> federated.Objective:
    """A distance of the head to examples, and the adapter's inner product with a part of ``base``.

    It compiles sooner than a model.
    """
    plain = problems.quadratic()

    def loss(base, trained, *others):
        pairs = zip(*map(jax.tree.leaves, (trained.adapter, base["step"])), strict=True)
        return plain.loss(base, trained, *others) + sum(jnp.sum(x * g) for x, g in pairs)

    return plain._replace(loss=loss)


@functools.cache
def moving_rounds(method: str) -> problems.Rounds:
    """Rounds of a method in groups of two clients."""
    own = methods.make(method, SPEC)
    train = federated.LocalTraining(moving(), optimizers.optimizer("sgd"))
    fn = federated.compile_round(own, train, execution=federated.Execution(clients_per_step=2))
    kernel = jnp.zeros((6, 5))
    state = federated.init_state(
        own,
        problems.random_adapter(SPEC, 0),
        {"layer": kernel},
        {"w": jnp.zeros(3)},
        clients=len(problems.SIZES),
        heads="average",
    )
    base = {"layer": {"kernel": kernel}, "step": problems.random_adapter(SPEC, 1)}
    return problems.Rounds(fn, base, jnp.asarray(problems.POINTS), problems.copy(state))


def plans(method: str, round: int) -> list[federated.Plan]:
    """Other cohorts, ranks, batches and learning rates with each seed."""
    rank = ranks_for(method)
    return [
        problems.round_federation(seed=seed).plan(round, np.roll(rank, seed), rate)
        for seed, rate in zip(SEEDS, RATES, strict=True)
    ]


@pytest.mark.parametrize("method", ["lora_a2", "flora"])
def test_federations_end_as_they_would_alone(method):
    """A method that probes clients, and one that changes the base of each federation."""
    assert_same_as_alone(moving_rounds(method), method)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(methods.METHODS))
def test_models_end_as_they_would_alone(method):
    assert_same_as_alone(bag_rounds(method, "vmap"), method)


def assert_same_as_alone(made: problems.Rounds, method: str) -> None:
    """Two rounds, the second from states that differ; what each reports is its own, too."""
    alone, states = [made.state() for _ in SEEDS], [made.state() for _ in SEEDS]
    keys = [jax.random.key(seed) for seed in SEEDS]
    for t in range(2):
        given = plans(method, t)
        singly = [made.run(alone[n], given[n], seed=SEEDS[n]) for n in range(len(SEEDS))]
        alone = [state for state, _ in singly]
        states, metrics = made.fn.together(made.base, made.data, states, given, keys)
        for mine, (_, want) in zip(metrics, singly, strict=True):
            np.testing.assert_allclose(mine.loss, want.loss, atol=problems.MODE_TOLERANCE)
            for field in ("examples", "rejected", "rank"):
                np.testing.assert_array_equal(getattr(mine, field), getattr(want, field))
    tolerance = TOLERANCE.get(method, problems.MODE_TOLERANCE)
    for got, want in zip(states, alone, strict=True):
        problems.assert_close(model(got), model(want), tolerance)
        if method not in TOLERANCE:
            problems.assert_close(problems.copy(got), problems.copy(want))
    assert problems.changed(model(states[0]), model(states[1]))
    assert made.fn.several._cache_size() == 1


def model(state: federated.FederatedState):
    """The adapted kernels and the head, on the host."""
    added = {path: pair.a @ pair.b for path, pair in problems.copy(state.server.adapter).items()}
    return added, problems.copy(state.server.kernels), problems.copy(state.head)


OWN = methods.make("zero_padding", SPEC)
OWN_PARAMS = {
    "layer": {"kernel": np.zeros((6, 5), np.float32)},
    "step": problems.random_adapter(SPEC, 1),
    "w": np.zeros(3, np.float32),
}


def own_round(**options):
    train = federated.LocalTraining(moving(), optimizers.optimizer("sgd"))
    return federated.make_round(OWN, train, **options)


def begun(seed: int) -> federated.FederatedState:
    params = OWN_PARAMS
    return federated.init(
        OWN, params, jax.random.key(seed), num_clients=len(problems.SIZES), fully_trained="^w$"
    )


def test_a_loop_of_its_own_runs_federations_together():
    """Each with examples of its own."""
    step, params = own_round(), OWN_PARAMS
    points = [problems.POINTS + n for n in range(len(SEEDS))]
    given = zip(plans("zero_padding", 0), points, strict=True)
    inputs = [federated.RoundInput(plan, data) for plan, data in given]
    states, metrics = step.together(params, [begun(s) for s in SEEDS], inputs)
    alone = [step(params, begun(s), i) for s, i in zip(SEEDS, inputs, strict=True)]
    for (want, reported), got, mine in zip(alone, states, metrics, strict=True):
        problems.assert_close(problems.copy(got.server), problems.copy(want.server))
        problems.assert_same_bits(got.loop[1:], want.loop[1:])  # all but the key
        np.testing.assert_allclose(mine.loss, reported.loss, atol=problems.MODE_TOLERANCE)


def test_what_cannot_run_together_is_refused_before_it_is_compiled():
    made = moving_rounds("zero_padding")
    fn, (one, other, _) = made.fn, plans("zero_padding", 0)
    key, state = jax.random.key(0), made.state()
    with pytest.raises(InputError, match="one state, plan and key of each"):
        fn.together(made.base, made.data, [state], [one, other], [key, key])
    with pytest.raises(InputError, match="one state, plan and key of each"):
        fn.together(made.base, made.data, [], [], [])
    shorter = other._replace(batches=other.batches._replace(index=other.batches.index[:, :1]))
    with pytest.raises(InputError, match="Federation 1 of those that run together"):
        fn.together(made.base, made.data, [state, state], [one, shorter], [key, key])
    too_high = other._replace(rank=np.full_like(other.rank, 9))
    with pytest.raises(InputError, match="Ranks \\[9\\]"):
        fn.together(made.base, made.data, [state, state], [one, too_high], [key, key])
    loop = own_round(execution=federated.Execution(mode="loop"))
    inputs = [federated.RoundInput(plan, problems.POINTS) for plan in (one, other)]
    with pytest.raises(InputError, match="in mode 'vmap'"):
        loop.together(made.base, [begun(0), begun(1)], inputs)
