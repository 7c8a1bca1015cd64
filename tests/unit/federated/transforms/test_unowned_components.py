"""A server optimizer leaves alone what no client of the round owns: value and moments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_lora import InputError, federated, methods
from fedjax_lora.core.types import ClientParams
from fedjax_lora.federated import Plan
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods import Method
from tests._helpers import closed_form_rounds, cohorts, problems
from tests._helpers.problems import Bound

RANKS = [1, 1, 1, 1, 4]
HIGH = 4  # the client of rank 4
SPEC = LoraSpec(targets=(LoraTarget("layers/x", 6, 5, (True, False, True)),), rank=4, alpha=4.0)
ADAM = optax.adam(0.1, b1=0.9, b2=0.99, eps=1e-3)
YOGI = federated.transforms.SERVER_OPTIMIZERS["yogi"]()
MOMENTUM = optax.sgd(0.5, momentum=0.9)

AVERAGING = [s for s in cohorts.SPECS if methods.make(s, SPEC).averages]
OF_EACH_KIND = {"hetlora", "fed_plora", "lora_a2"}


def moved(base, data, clients, rate):
    """Training that adds a number of the client's own to everything that it may train."""

    def one(x, mask):
        draw = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], minval=0.5))(clients.key)
        return jnp.where(mask, x + draw, x)

    params = clients.params
    trained = jax.tree.map(one, params, clients.trainable)
    return trained, closed_form_rounds.report(jnp.ones(clients.rank.shape))


def rounds(method: Method, optimizer=None, heads: federated.Head = "average"):
    """A function of (state, clients, round), and the state before the first round."""
    both = {"heads": heads, "server_optimizer": optimizer}
    compiled = federated.compile_round(method, Bound(moved), **both)
    begin = federated.init_state(
        method,
        cohorts.on_device(cohorts.random_adapter(SPEC, 1)),
        {"layers/x": jnp.zeros((3, 6, 5))},
        {"w": jnp.ones(3)},
        clients=len(RANKS),
        **both,
    )

    def play(state, client: int, round: int):
        rank = RANKS[client] if methods.takes_mixed_ranks(method.name) else 2
        plan = plan_of(client, rank, round)
        after, _ = compiled({}, jnp.zeros(1), jax.device_put(state), plan, jax.random.key(0))
        return problems.copy(after)

    return play, problems.copy(begin)


def plan_of(client: int, rank: int, round: int) -> Plan:
    """A round of one client."""
    whole = lambda x: np.array([x], np.int32)  # noqa: E731
    batches = problems.batches_of([[0]])
    weight, rate = np.ones(1, np.float32), np.float32(0.1)
    return Plan(whole(client), whole(rank), weight, batches, rate, np.int32(round))


def test_unowned_components_are_exactly_unchanged():
    """Ranks 1, 1, 1, 1, 4, one client a round: after the high one, three rounds of low ones."""
    play, state = rounds(methods.make("masked_mean", SPEC), ADAM)
    state = play(state, HIGH, 0)
    for t in range(1, 4):
        before, state = state, play(state, t, t)
        new, old = state.server.adapter["layers/x"], before.server.adapter["layers/x"]
        np.testing.assert_array_equal(new.a[..., 1:], old.a[..., 1:])
        np.testing.assert_array_equal(new.b[..., 1:, :], old.b[..., 1:, :])
        assert np.all(new.a[[0, 2], :, 0] != old.a[[0, 2], :, 0])
        assert np.all(state.head["w"] != before.head["w"])


def moments(state) -> list[ClientParams]:
    is_tree = lambda x: isinstance(x, ClientParams)  # noqa: E731
    return [x for x in jax.tree.leaves(state, is_leaf=is_tree) if is_tree(x)]


@pytest.mark.parametrize(
    "spec", [pytest.param(s, marks=[pytest.mark.slow] * (s not in OF_EACH_KIND)) for s in AVERAGING]
)
def test_optimizer_leaves_unowned_components_unchanged(spec: str):
    """Value and moments are bitwise equal; components that the method changes do move."""
    method = methods.make(spec, SPEC)
    play, state = rounds(method, ADAM)
    alone, _ = rounds(method)
    for t, client in enumerate([HIGH, HIGH, 0, 1]):
        before = state
        state = play(before, client, t)
        plain = alone(before._replace(optimizer=()), client, t)
        left = jax.tree.map(
            lambda x, y: x == y,
            ClientParams(plain.server.adapter, plain.head),
            ClientParams(before.server.adapter, before.head),
        )
        new, old = (ClientParams(s.server.adapter, s.head) for s in (state, before))
        pairs = [(new, old), *zip(moments(state.optimizer), moments(before.optimizer), strict=True)]
        for now, then in pairs:
            for same, x, y in zip(*map(jax.tree.leaves, (left, now, then)), strict=True):
                np.testing.assert_array_equal(np.asarray(x)[same], np.asarray(y)[same])
        for same, x, y in zip(*map(jax.tree.leaves, (left, new, old)), strict=True):
            assert np.all(np.asarray(x)[~same] != np.asarray(y)[~same])
        kept = np.concatenate([np.ravel(x) for x in jax.tree.leaves(left.adapter)])
        assert kept.sum() > 0 and not np.all(kept)


@pytest.mark.parametrize("optimizer", [YOGI, MOMENTUM], ids=["yogi", "momentum"])
def test_other_optimizers_leave_unowned_components_unchanged(optimizer):
    play, state = rounds(methods.make("zero_padding", SPEC), optimizer)
    state = play(state, HIGH, 0)
    after = play(state, 0, 1)
    for now, then in [
        (after.server, state.server),
        *zip(moments(after.optimizer), moments(state.optimizer), strict=True),
    ]:
        new, old = now.adapter["layers/x"], then.adapter["layers/x"]
        np.testing.assert_array_equal(new.a[..., 1:], old.a[..., 1:])
        np.testing.assert_array_equal(new.b[..., 1:, :], old.b[..., 1:, :])
        assert np.all(new.a[[0, 2], :, 0] != old.a[[0, 2], :, 0])


def test_zero_padded_component_is_owned_by_all_padding_clients():
    """The optimizer then follows the change to zero."""
    play, state = rounds(methods.make("zero_padding(empty='zero')", SPEC), optax.sgd(0.5))
    after = play(state, 0, 0)
    new, old = after.server.adapter["layers/x"], state.server.adapter["layers/x"]
    np.testing.assert_allclose(new.b[..., 1:, :], 0.5 * old.b[..., 1:, :], rtol=1e-6)


def test_pruned_tail_of_a_client_has_no_owner():
    """The tail has been trained but is not sent."""
    method = methods.make("hetlora(gamma=0.5)", SPEC)
    play, state = rounds(method, MOMENTUM)
    shrunk = lambda base, data, clients, rate: (  # noqa: E731
        jax.tree.map(lambda x, m: jnp.where(m, 0.5 * x, x), clients.params, clients.trainable),
        closed_form_rounds.report(jnp.ones(clients.rank.shape)),
    )
    state = play(state, HIGH, 0)  # grows, so that nothing is cut and all have momentum
    fn = federated.compile_round(method, Bound(shrunk), server_optimizer=MOMENTUM)
    args = {}, jnp.zeros(1), jax.device_put(state), plan_of(HIGH, 4, 1), jax.random.key(0)
    after, seen = fn(*args)
    assert seen.rank.tolist() == [2]
    new, old = after.server.adapter["layers/x"], state.server.adapter["layers/x"]
    np.testing.assert_array_equal(new.b[..., 2:, :], old.b[..., 2:, :])
    assert np.all(np.asarray(new.b)[[0, 2], :2] != old.b[[0, 2], :2])


@pytest.mark.parametrize(
    "name", sorted(set(methods.METHODS) - {m.split("(")[0] for m in AVERAGING})
)
def test_custom_loop_refuses_methods_without_an_update_direction(name: str):
    """As the command line does: singular vectors turn, and their signs are arbitrary."""
    with pytest.raises(InputError, match=rf"server optimizer .*'{name}' does not; take"):
        federated.make_round(methods.make(name, SPEC), Bound(moved), server_optimizer=ADAM)


def test_ownership_masks_broadcast_against_the_adapter():
    plain = methods.make("masked_mean", SPEC)

    def aggregate(*given):
        return plain.aggregate(*given)._replace(owned={"layers/x": jnp.ones(3, bool)})

    play, state = rounds(dataclasses.replace(plain, aggregate=aggregate), ADAM)
    with pytest.raises(InputError, match=r"AggregateResult\.owned does not broadcast"):
        play(state, 0, 0)
