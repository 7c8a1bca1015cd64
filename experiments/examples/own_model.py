"""Federated LoRA on a Flax model and a loss of your own.

Run it with ``python -m experiments.examples.own_model``.

A small convolution-free image model is trained on upright handwritten digits (scikit-learn's, 8 x
8). Then 20 clients, each with digits turned by a quarter and of few classes, adapt it together:
their ranks are 1, 2, 4 and 8, and HLoRA aggregates them. What is the user's own is above the line.
"""

import json
import pathlib
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from fedjax_lora import data, federated, lora, methods
from fedjax_lora.core.types import Array, ClientParams, Gain, Key, Params
from fedjax_lora.evaluation import predict as prediction
from fedjax_lora.federated import Objective, Score, optimizers
from fedjax_lora.federated.planning import Federation

RESULTS = pathlib.Path(__file__).parent / "results"
RANKS = (1, 2, 4, 8)


class Digits(NamedTuple):
    """Images and labels; the field ``length`` is what batches are padded by: here nothing."""

    image: Any  # float32[E, 64]
    label: Any  # int32[E]
    length: Any  # int32[E]


class Net(nn.Module):
    """Three dense layers."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits ``[n, 10]``."""
        for name in ("first", "second"):
            x = nn.relu(nn.Dense(64, name=name)(x))
        return nn.Dense(10, name="last")(x)


def loss_of(logits: Array, label: Array) -> Array:
    """The user's loss: cross-entropy with smoothed labels, ``[n]``."""
    smooth = optax.smooth_labels(jax.nn.one_hot(label, 10), 0.1)
    return optax.softmax_cross_entropy(logits, smooth)


# ------------------------------------------------------------------------ the same for any model


def make_objective(net: nn.Module) -> Objective:
    """What clients minimise: the module with adapters, and the loss."""

    def outputs(base: Params, trained: ClientParams, gain: Gain, batch: Digits) -> Array:
        return lora.apply(net, base, trained.adapter, gain, batch.image)

    def loss(
        base: Params,
        trained: ClientParams,
        gain: Gain,
        fixed: Gain | None,
        batch: Digits,
        valid: Array,
        key: Key,
    ) -> Array:
        each = loss_of(outputs(base, trained, gain, batch), batch.label)
        return jnp.sum(jnp.where(valid, each, 0.0)) / jnp.maximum(jnp.sum(valid), 1).astype(
            jnp.float32
        )

    def take(digits: Any, index: Array, length: int) -> Digits:
        return Digits(*(x[index] for x in digits))

    def score(output: Array, batch: Digits) -> Score:
        hits = jnp.argmax(output, axis=1) == batch.label
        return Score(loss_of(output, batch.label), hits.astype(jnp.float32), jnp.ones(len(output)))

    return Objective(loss, outputs, take, score, lengths=(1,))


def digits(turned: bool) -> tuple[Digits, Digits]:
    """Training and test images, 80 and 20 percent."""
    found: Any = load_digits()
    image = np.rot90(found.images, turned, axes=(1, 2)).reshape(-1, 64).astype(np.float32) / 16
    label = found.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(label))
    cut = len(order) * 4 // 5
    parts = (order[:cut], order[cut:])
    train, test = (Digits(image[i], label[i], np.ones(len(i), np.int32)) for i in parts)
    return train, test


def pretrain(net: nn.Module, train: Digits, *, steps: int) -> Params:
    """The base model, trained on all images at once."""
    params = net.init(jax.random.key(0), train.image[:1])["params"]
    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        def mean(params: Any) -> Array:
            return jnp.mean(
                loss_of(cast(Array, net.apply({"params": params}, train.image)), train.label)
            )

        updates, state = optimizer.update(jax.grad(mean)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def federate(
    net: nn.Module, base: Params, train: Digits, test: Digits, *, number: int, method: str
) -> list[float]:
    """Test accuracy before the first round and after each round."""
    spec = lora.make_spec(base, targets="first|second|last", rank=max(RANKS))
    rank = np.resize(RANKS, 20).astype(np.int32)
    parts = data.partition("dirichlet(alpha=0.5)", train.label, clients=20, seed=0)
    federation = Federation(
        members=parts.indices,
        length=train.length,
        cohort=8,
        padded=8,
        batch=16,
        epochs=2,
        max_steps=None,
        by_length=False,
        seed=0,
    )
    objective, chosen = make_objective(net), methods.make(method, spec)
    train_locally = federated.LocalTraining(objective, optimizers.optimizer("adam", clip=1.0))
    execution = federated.Execution(clients_per_step=8)
    round_fn = federated.compile_round(chosen, train_locally, heads="frozen", execution=execution)
    kernels = {target.path: base[target.path]["kernel"] for target in spec.targets}
    state = federated.init_state(
        chosen,
        lora.init(spec, jax.random.key(1)),
        kernels,
        head={},  # nothing is trained but the adapters
        clients=20,
        heads="frozen",
    )
    state = jax.tree.map(jnp.array, state)  # a round gives its input's memory back
    predict = prediction.make_predict(objective, batch=64)
    gain, placed = lora.uniform_gain(spec), jax.device_put(train)

    def accuracy() -> float:
        full = federated.with_kernels(base, state.server.kernels)
        trained = ClientParams(state.server.adapter, {})
        logits = predict(prediction.AdaptedParams(full, trained, gain), test)
        return float(np.mean(logits.argmax(1) == test.label))

    found = [accuracy()]
    for t in range(number):
        plan = federation.plan(t, rank, 1e-2)
        state, _ = round_fn(base, placed, state, plan, jax.random.key(0))
        found.append(accuracy())
    return found


def main(*, number: int = 30, steps: int = 200, method: str = "hlora") -> dict[str, Any]:
    """The whole experiment; returns what the result file holds."""
    net = Net()
    base = pretrain(net, digits(False)[0], steps=steps)
    train, test = digits(True)
    upright = digits(False)[1]
    right = net.apply({"params": base}, upright.image)
    found = federate(net, base, train, test, number=number, method=method)
    return {
        "method": method,
        "ranks": RANKS,
        "rounds": number,
        "base_on_upright": float(np.mean(np.asarray(right).argmax(1) == upright.label)),
        "base_on_turned": found[0],
        "adapted_on_turned": found[-1],
        "history": found,
    }


if __name__ == "__main__":
    result = main()
    text = json.dumps(result, indent=2) + "\n"
    (RESULTS / "own_model.json").write_text(text, encoding="utf-8")
    print(text)
