"""Noise of a trusted server: how far one client moves a mean, and how much noise there is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_lora as fl
from fedjax_lora import InputError
from fedjax_lora.federated import ClientMetrics, transforms

RANK, NORM, MULTIPLIER = 3, 0.5, 0.7
BASE = {"layer": {"kernel": np.zeros((40, 30), np.float32)}, "w": np.zeros(50, np.float32)}
SPEC = fl.lora.make_spec(BASE, targets="layer", rank=RANK)
RANKS, WEIGHTS = np.array([1, 2, 3]), np.array([4.0, 1.0, 2.0])
SHARES = {"masked_mean": 1.0, "zero_padding": 4 / 7, "fslora": 4 / 7}
"""Only client 2 owns the last component; client 0 has most examples, which count for the head."""


@dataclasses.dataclass(frozen=True)
class Pushed:
    """Clients move every number in a direction that their first row says, 0 not at all."""

    def bind(self, method):
        def train(base, data, clients, rate):
            push = data[clients.batches.index[:, 0, 0]]

            def moved(x, m):
                return jnp.where(m, x + push.reshape(-1, *(1,) * (x.ndim - 1)), x)

            count = clients.rank.shape[0]
            trained = jax.tree.map(moved, clients.params, clients.trainable)
            return trained, ClientMetrics(jnp.zeros(count), jnp.ones(count))

        return train


@functools.cache
def program(name):
    method = fl.methods.make(name, SPEC)
    spec = f"central_noise(norm={NORM}, multiplier={MULTIPLIER})"
    updates = transforms.make_transforms([spec], method)
    return method, fl.federated.make_round(method, Pushed(), updates=updates)


def after(name, rows):
    """What is released of the clients' pushes, as one vector."""
    method, step = program(name)
    state = fl.federated.init(method, BASE, jax.random.key(1), num_clients=3, fully_trained="w")
    begin = [np.array(x) for x in jax.tree.leaves((state.server.adapter, state.head))]
    cohort = fl.federated.cohort(
        [0, 1, 2], RANKS, WEIGHTS, np.array(rows).reshape(3, 1, 1), round=0,
        data=np.array([0.0, 1.0, -1.0, 0.3], np.float32),
    )  # fmt: skip
    state, _ = step(BASE, state, cohort)
    end = jax.tree.leaves((state.server.adapter, state.head))
    return np.concatenate([np.ravel(x - y) for x, y in zip(end, begin, strict=True)])


@pytest.mark.parametrize(
    "name",
    [
        "masked_mean",
        *(pytest.param(x, marks=pytest.mark.slow) for x in SHARES if x != "masked_mean"),
    ],
)
def test_neighbouring_federations_differ_by_at_most_the_sensitivity(name):
    """The noise is the same in both, so the difference is that of the means."""
    bound, found = 2 * NORM * SHARES[name], []
    for client in range(3):
        for others in ([0, 3, 1], [3, 1, 2]):
            one, other = (np.array(others), np.array(others))
            one[client], other[client] = 1, 2
            found.append(np.linalg.norm(after(name, one) - after(name, other)))
    assert max(found) <= bound * (1 + 1e-5)
    assert max(found) > 0.5 * bound, "no bound far from what can happen"


def test_noise_has_the_deviation_of_the_largest_share():
    """Without changes only the noise is released; 260 numbers know a deviation to five per cent."""
    noise = after("masked_mean", [0, 0, 0])
    want = MULTIPLIER * NORM * SHARES["masked_mean"]
    assert np.std(noise) == pytest.approx(want, rel=0.15) and abs(noise.mean()) < 0.3 * want
    assert np.count_nonzero(noise) == noise.size == RANK * (40 + 30) + 50


@pytest.mark.parametrize(
    ("name", "specs", "words"),
    [
        ("hlora", ["central_noise(norm=1.0, multiplier=1.0)"], "'hlora' has another aggregate"),
        ("hetlora", ["central_noise(norm=1.0, multiplier=1.0)"], "'hetlora' has another aggregate"),
        ("masked_mean", ["central_noise(norm=1.0, multiplier=1.0)", "int8"], "is used alone"),
        ("masked_mean", ["central_noise(norm=1.0)"], "needs a multiplier"),
        ("lora_a2", ["central_noise(norm=1.0, multiplier=1.0)"], "does not probe"),
    ],
)
def test_what_has_no_known_sensitivity_is_refused(name, specs, words):
    with pytest.raises(InputError, match=words):
        transforms.make_transforms(specs, fl.methods.make(name, SPEC))
