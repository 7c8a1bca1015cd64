"""Late clients in a round, against NumPy: a few rounds of clients that begin where others are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lora as fl
from fedjax_lora import InputError
from fedjax_lora.core.types import LoRA
from fedjax_lora.federated import ClientMetrics
from fedjax_lora.federated.staleness import Staleness

RANK = 3
BASE = {"layer": {"kernel": np.zeros((5, 4), np.float32)}, "w": np.ones(2, np.float32)}
SPEC = fl.lora.make_spec(BASE, targets="layer", rank=RANK)
KEY = jax.random.key(0)
ROWS = np.arange(8)[:, None, None]
COHORTS = [  # ids, ranks, weights, staleness
    ([0, 1], [1, 3], [2.0, 1.0], [0, 0]),
    ([2, 3], [3, 2], [1.0, 3.0], [1, 0]),
    ([1, 4], [3, 2], [1.0, 1.0], [2, 1]),
]


@dataclasses.dataclass(frozen=True)
class Halfway:
    """Training in closed form: halfway from where a client begins to a point of its own."""

    def bind(self, method):
        def train(base, data, clients, rate):
            target = clients.batches.index[:, 0, 0].astype(jnp.float32)

            def moved(x, m):
                goal = jnp.sin(1 + target.reshape(-1, *(1,) * (x.ndim - 1)))
                return jnp.where(m, 0.5 * (x + goal), x)

            trained = jax.tree.map(moved, clients.params, clients.trainable)
            return trained, ClientMetrics(jnp.zeros(len(target)), jnp.ones(len(target)))

        return train


@functools.cache
def rounds(name, staleness, count=3):
    """The server's adapter and head after each of the first cohorts, and the round's program."""
    method = fl.methods.make(name, SPEC)
    step = fl.federated.make_round(method, Halfway(), staleness=staleness)
    state = fl.federated.init(
        method, BASE, KEY, num_clients=6, fully_trained="w", staleness=staleness
    )
    states = [jax.tree.map(np.array, (state.server.adapter["layer"], state.head["w"]))]
    for t, (ids, ranks, weights, late) in enumerate(COHORTS[:count]):
        given = {} if staleness is None else {"staleness": late}
        cohort = fl.federated.cohort(
            ids, ranks, weights, ROWS[np.array(ids)], round=t, data=np.zeros(8), **given
        )
        state, _ = step(BASE, state, cohort)
        states.append(jax.tree.map(np.array, (state.server.adapter["layer"], state.head["w"])))
    return states, step.compiled.compiled


def halfway(x, k):
    return 0.5 * (x + np.sin(1.0 + k))


def test_changes_are_added_to_the_present_model_as_in_numpy():
    """The masked mean of ``now + (1 + t)^-1/2 (trained - start)`` over the owners."""
    states, program = rounds("masked_mean", Staleness())
    models = [states[0]]
    for ids, ranks, weights, late in COHORTS:
        (a, b), w = models[-1]
        sums, mass = [np.zeros_like(a), np.zeros_like(b)], np.zeros(RANK)
        head = 0.0
        for k, r, n, t in zip(ids, ranks, weights, late, strict=True):
            (old_a, old_b), old_w = models[-1 - t]
            own, s = np.arange(RANK) < r, (1 + t) ** -0.5
            sums[0] += n * own * (a + s * (halfway(old_a, k) - old_a))
            sums[1] += n * own[:, None] * (b + s * (halfway(old_b, k) - old_b))
            head = head + n * (w + s * (halfway(old_w, k) - old_w)) / sum(weights)
            mass += n * own
        new = LoRA(sums[0] / mass, sums[1] / mass[:, None])
        models.append((new, head))
    for got, want in zip(states, models, strict=True):  # numbers of the order of 1
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), got, want)
    assert program._cache_size() == 1


def test_models_of_products_are_mixed_with_the_present_one_as_in_numpy():
    """The best factors of ``sum_k p_k ((1 - s_k) P + s_k a_k b_k)``, ``s = 0.6 / (1 + t)``."""
    states, _ = rounds("hlora", Staleness(mix="models", exponent=1.0, rate=0.6))
    for at, (ids, ranks, weights, late) in enumerate(COHORTS):
        (a, b), w = states[at]
        product, head = np.zeros((5, 4)), np.zeros(2)
        for k, r, n, t in zip(ids, ranks, weights, late, strict=True):
            (old_a, old_b), old_w = states[at - t]
            s, p = 0.6 / (1 + t), n / sum(weights)
            own = halfway(old_a[:, :r], k) @ halfway(old_b[:r], k)
            product += p * ((1 - s) * a @ b + s * own)
            head += p * ((1 - s) * w + s * halfway(old_w, k))
        u, d, v = np.linalg.svd(product)
        want = (u[:, :RANK] * d[:RANK]) @ v[:RANK]
        (new_a, new_b), new_w = states[at + 1]
        np.testing.assert_allclose(new_a @ new_b, want, atol=2e-5)
        np.testing.assert_allclose(new_w, head, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "mix"),
    [
        ("masked_mean", "changes"),
        pytest.param("masked_mean", "models", marks=pytest.mark.slow),
        pytest.param("zero_padding", "changes", marks=pytest.mark.slow),
        pytest.param("fed_plora", "changes", marks=pytest.mark.slow),
        pytest.param("hlora", "models", marks=pytest.mark.slow),
    ],
)
def test_a_round_without_late_clients_is_the_synchronous_one(name, mix):
    """Nobody is late in the first cohort."""
    late, _ = rounds(name, Staleness(mix=mix))
    plain, _ = rounds(name, None, 1)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    if mix == "changes":
        same = np.testing.assert_array_equal
    jax.tree.map(same, late[:2], plain)


def test_every_method_says_what_it_takes_or_is_refused_by_name():
    taken = {}
    for name in fl.methods.METHODS:
        spec = fl.lora.make_spec(BASE, targets="layer", rank=RANK)
        method = fl.methods.make(name, spec)
        for mix in ("changes", "models"):
            try:
                fl.federated.make_round(method, Halfway(), staleness=Staleness(mix=mix))
                taken.setdefault(mix, set()).add(name)
            except InputError as error:
                assert repr(name) in str(error)
    assert taken == {
        "changes": {
            "zero_padding", "replication", "masked_mean", "fedit", "fed_plora", "fslora", "ffa_lora"
        },
        "models": {"masked_mean", "fedit", "ffa_lora", "hlora", "flexlora"},
    }  # fmt: skip
    with pytest.raises(InputError, match="cannot mix late changes, only models"):
        rounds("hlora", Staleness())
    with pytest.raises(InputError, match="belongs to the round in which they began"):
        rounds("flora", Staleness(mix="models"))
    with pytest.raises(InputError, match="not weighed by examples"):
        rounds("hlora(weights='uniform')", Staleness(mix="models"))


def test_staleness_is_given_to_all_parts_of_a_loop():
    method = fl.methods.make("masked_mean", SPEC)
    step = fl.federated.make_round(method, Halfway(), staleness=Staleness())
    state = fl.federated.init(method, BASE, KEY, num_clients=6)
    given = {"round": 0, "data": np.zeros(8), "weights": 1.0}
    with pytest.raises(InputError, match="give it to all of them"):
        step(BASE, state, fl.federated.cohort([0], [1], batches=ROWS[:1], staleness=0, **given))
    with pytest.raises(InputError, match="from 0 to the number of the round, 0"):
        fl.federated.cohort([0], [1], batches=ROWS[:1], staleness=1, **given)
