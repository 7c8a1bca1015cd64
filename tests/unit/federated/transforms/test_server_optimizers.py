"""Server optimizers against the recurrences written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import InputError, methods
from fedjax_lora.core.types import ClientParams, LoRA
from fedjax_lora.federated import transforms
from tests._helpers.client_messages import TEMPLATE

ROUNDS = 3


def make(spec: str) -> transforms.ServerOptimizer:
    made = transforms.make_server_optimizer(spec, methods.make("masked_mean", TEMPLATE))
    assert made is not None
    return made


def tree(seed: int) -> ClientParams:
    """A global adapter whose second component no client ever trains, and a head."""
    rng = np.random.default_rng(seed)
    a, b, head = rng.normal(size=(4, 2)), rng.normal(size=(2, 3)), rng.normal(size=3)
    a[:, 1] = b[1] = 0
    pair = LoRA(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    return ClientParams({"layer": pair}, {"w": jnp.asarray(head, jnp.float32)})


def owned(adapter: bool, head: bool | None = None) -> ClientParams:
    """All of the adapter or none of it, and of the head (by default likewise)."""
    mask = jnp.full((1, 1), adapter)
    return ClientParams(
        {"layer": LoRA(mask, mask)}, {"w": jnp.full(1, adapter if head is None else head)}
    )


def flat(tree: ClientParams) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def play(spec: str, *, answered: bool = True) -> list[np.ndarray]:
    """The server after every round in which the method moves it by ``0.1 * tree(t)``."""
    optimizer, now = make(spec), tree(0)
    moments, seen = optimizer.init(now), [flat(now)]
    step = jax.jit(lambda *args: transforms.server_step(optimizer, *args))
    for t in range(1, ROUNDS + 1):
        new = jax.tree.map(lambda x, d: x + 0.1 * d, now, tree(t))
        now, moments = step(moments, now, new, owned(answered))
        seen.append(flat(now))
    return seen


def by_hand(rule) -> list[np.ndarray]:
    """``rule(t, change) -> step`` with its own memory."""
    seen = [flat(tree(0))]
    for t in range(1, ROUNDS + 1):
        seen.append(seen[-1] + rule(t, 0.1 * flat(tree(t))))
    return seen


def fed_avg_m(rate, momentum):
    memory = np.zeros(())

    def rule(t, change):
        nonlocal memory
        memory = momentum * memory + change
        return rate * memory

    return rule


def fed_adam(rate, b1, b2, tau, *, yogi=False):
    m, v = np.zeros(()), np.zeros(())

    def rule(t, change):
        nonlocal m, v
        square = change**2
        m = b1 * m + (1 - b1) * change
        v = v - (1 - b2) * square * np.sign(v - square) if yogi else b2 * v + (1 - b2) * square
        return rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + tau)

    return rule


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("sgd", lambda: lambda t, change: change),
        ("sgd(learning_rate=0.3)", lambda: lambda t, change: 0.3 * change),
        ("sgd(learning_rate=0.5, momentum=0.9)", lambda: fed_avg_m(0.5, 0.9)),
        ("adam", lambda: fed_adam(0.01, 0.9, 0.99, 1e-3)),
        ("adam(learning_rate=0.1, b1=0.5, b2=0.8, eps=0.1)", lambda: fed_adam(0.1, 0.5, 0.8, 0.1)),
        ("yogi", lambda: fed_adam(0.01, 0.9, 0.99, 1e-3, yogi=True)),
    ],
)
def test_three_rounds_equal_a_numpy_recurrence(spec, rule):
    got, want = play(spec), by_hand(rule())
    for one, two in zip(got, want, strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-6, atol=2e-6)
    assert np.abs(got[-1] - got[0]).max() > 1e-2


@pytest.mark.parametrize("spec", ["sgd(momentum=0.9)", "adam", "yogi"])
def test_unchanged_parameters_stay_bitwise_equal(spec):
    """Components beyond every rank and layers left out are exactly zero, and have to stay so."""
    never = flat(tree(0)) == 0
    assert never.sum() == 4 + 3
    for seen in play(spec):
        np.testing.assert_array_equal(seen[never], 0)


@pytest.mark.parametrize("spec", ["sgd(momentum=0.9)", "adam", "yogi"])
def test_without_present_clients_the_server_is_unchanged(spec):
    optimizer, old = make(spec), tree(0)
    moments = optimizer.init(old)
    _, moments = transforms.server_step(optimizer, moments, old, tree(1), owned(True))
    got = transforms.server_step(optimizer, moments, old, tree(2), owned(False))
    for one, two in zip(*map(jax.tree.leaves, (got, (old, moments))), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("spec", ["sgd(momentum=0.9)", "adam", "yogi"])
def test_untrained_head_keeps_its_value_and_moments(spec):
    optimizer, old = make(spec), tree(0)
    _, moments = transforms.server_step(optimizer, optimizer.init(old), old, tree(1), owned(True))
    new = tree(2)._replace(head=old.head)
    now, later = transforms.server_step(optimizer, moments, old, new, owned(True, head=False))
    moved, _ = transforms.server_step(optimizer, moments, old, new, owned(True))
    assert np.any(np.asarray(moved.head["w"]) != old.head["w"]), "its momentum would have moved it"
    np.testing.assert_array_equal(now.head["w"], old.head["w"])
    for new, before in zip(moments_of(later), moments_of(moments), strict=True):
        np.testing.assert_array_equal(new.head["w"], before.head["w"])
        assert np.any(np.asarray(new.adapter["layer"].a) != before.adapter["layer"].a)


def moments_of(state) -> list[ClientParams]:
    """The optimizer's trees of the parameters' shape."""
    is_tree = lambda x: isinstance(x, ClientParams)  # noqa: E731
    found = [x for x in jax.tree.leaves(state, is_leaf=is_tree) if is_tree(x)]
    assert found
    return found


def test_none_disables_the_server_optimizer():
    assert transforms.make_server_optimizer("none", methods.make("flora", TEMPLATE)) is None


@pytest.mark.parametrize(
    ("spec", "method", "words"),
    [
        ("adamm", "fedit", "did you mean 'adam'"),
        ("adam(beta=0.9)", "fedit", "beta"),
        ("sgd(learning_rate=0.0)", "fedit", "learning_rate above 0"),
        ("sgd(momentum=1.0)", "fedit", "momentum in [0, 1)"),
        ("adam(b2=-0.1)", "fedit", "b2 in [0, 1)"),
        ("yogi(eps=0.0)", "fedit", "eps above 0"),
        ("adam", "flora", "'flora' does not"),
        ("sgd", "hlora", "'hlora' does not"),
    ],
)
def test_invalid_server_optimizers_are_refused_in_one_sentence(spec, method, words):
    with pytest.raises(InputError) as error:
        transforms.make_server_optimizer(spec, methods.make(method, TEMPLATE))
    assert words in str(error.value)
