"""A federated loop of your own: your model, your data and your loss, with any method.

Run it with ``python -m experiments.examples.own_loop``, or with the names of some methods.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import fedjax_lora as fl

CLIENTS, COHORT, STEPS, BATCH, RATE = 20, 8, 10, 16, 5e-3
RANKS = np.resize([1, 2, 4, 8], CLIENTS)
Data = Mapping[str, np.ndarray]


class Net(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[n, 10]``."""
        return nn.Dense(10, name="out")(nn.tanh(nn.Dense(16, name="hidden")(x)))


def loss_fn(apply: Callable[..., Any], batch: Data, key: jax.Array) -> jax.Array:
    """Cross-entropy of each example, ``[n]``."""
    return optax.softmax_cross_entropy_with_integer_labels(apply(batch["x"]), batch["y"])


def make_data() -> tuple[Data, list[np.ndarray]]:
    """Points of ten classes, and the rows that each client has: few classes per client."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 12)).astype(np.float32)
    y = np.argmax(x @ rng.normal(size=(12, 10)), axis=1).astype(np.int32)
    order = np.argsort(y + 3 * rng.normal(size=len(y)))
    cuts = np.sort(rng.choice(np.arange(40, 1960, 40), CLIENTS - 1, replace=False))
    return {"x": x, "y": y}, np.split(order, cuts)


def federate(name: str, *, rounds: int) -> tuple[Any, fl.federated.FederatedState, list[float]]:
    """Adapt the network: global parameters, state, and the mean training loss of each round."""
    (data, members), rng, key = make_data(), np.random.default_rng(1), jax.random.key(0)
    sizes = np.array([len(rows) for rows in members])
    ranks = RANKS if fl.methods.takes_mixed_ranks(name) else np.full(CLIENTS, 8)
    net, losses = Net(), []
    params = net.init(key, data["x"][:1])["params"]

    spec = fl.lora.make_spec(params, targets="hidden|out", rank=8)
    method = fl.methods.make(name, spec)
    train = fl.federated.local_training(net, loss_fn, optax.adam(RATE, eps=1e-4))
    step = fl.federated.make_round(method, train)
    state = fl.federated.init(method, params, key, num_clients=CLIENTS)
    for t in range(rounds):
        ids = rng.choice(CLIENTS, size=COHORT, replace=False)
        rows = np.stack([rng.choice(members[i], (STEPS, BATCH)) for i in ids])
        cohort = fl.federated.cohort(ids, ranks[ids], sizes[ids], rows, round=t, data=data)
        state, metrics = step(params, state, cohort)
        losses.append(float(np.mean(metrics.loss)))
    return fl.federated.global_params(method, params, state), state, losses


def main(names: Sequence[str], *, rounds: int = 30) -> None:
    """Print the loss of the first and the last rounds, and the accuracy on all data."""
    data, _ = make_data()
    for name in names or fl.methods.METHODS:
        params, _, losses = federate(name, rounds=rounds)
        logits = np.asarray(Net().apply({"params": params}, data["x"]))
        accuracy = np.mean(logits.argmax(1) == data["y"])
        print(f"{name:13} loss {losses[0]:.3f} -> {losses[-1]:.3f}   accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
