"""Federated LoRA on a Flax model of your own: digits turned by a quarter.

Run it with ``python -m experiments.examples.own_model``. A small model is trained on upright
handwritten digits; then 20 clients with turned ones adapt it together at ranks 1, 2, 4 and 8.
"""

import functools
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import fedjax_lora as fl

RESULTS = pathlib.Path(__file__).parent / "results"
RANKS = np.resize([1, 2, 4, 8], 20)
NET = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10)])


def loss_fn(apply: Any, batch: Any, key: Any = None) -> jax.Array:
    """Cross-entropy with smoothed labels, ``[n]``."""
    labels = optax.smooth_labels(jax.nn.one_hot(batch["label"], 10), 0.1)
    return optax.softmax_cross_entropy(apply(batch["image"]), labels)


def digits(turned: bool) -> list[dict[str, np.ndarray]]:
    """Training and test examples, 80 and 20 percent."""
    images, labels = map(np.asarray, load_digits(return_X_y=True))
    images = np.rot90(images.reshape(-1, 8, 8), turned, axes=(1, 2)).reshape(-1, 64) / 16
    parts = np.split(np.random.default_rng(0).permutation(len(labels)), [len(labels) * 4 // 5])
    return [{"image": images[i].astype(np.float32), "label": labels[i]} for i in parts]


def pretrain(batch: Any, *, steps: int) -> Any:
    """The base model, trained on all upright images at once."""
    params, optimizer = NET.init(jax.random.key(0), batch["image"])["params"], optax.adam(5e-3)
    mean = lambda p: loss_fn(functools.partial(NET.apply, {"params": p}), batch).mean()  # noqa: E731

    def step(carry: Any, _: None) -> tuple[Any, None]:
        updates, state = optimizer.update(jax.grad(mean)(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]


def accuracy(params: Any, test: Any) -> float:
    """The share of right predictions."""
    logits = np.asarray(NET.apply({"params": params}, test["image"]))
    return float(np.mean(logits.argmax(1) == test["label"]))


def main(*, rounds: int = 30, steps: int = 200, method: str = "hlora") -> dict[str, Any]:
    """The whole experiment; returns what the result file holds."""
    (upright, upright_test), (train, test) = digits(False), digits(True)
    base = pretrain(upright, steps=steps)
    parts = fl.data.partition("dirichlet(alpha=0.5)", train["label"], clients=20, seed=0).indices
    rule = fl.methods.make(method, fl.lora.make_spec(base, targets="layers_", rank=8))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    step = fl.federated.make_round(rule, fl.federated.local_training(NET, loss_fn, optimizer))
    state = fl.federated.init(rule, base, jax.random.key(1), num_clients=20)
    rng, history = np.random.default_rng(0), [accuracy(base, test)]
    for t in range(rounds):
        ids = rng.choice(20, size=8, replace=False)
        rows = np.stack([rng.choice(parts[i], (16, 16)) for i in ids])  # 16 steps of 16
        sizes = [len(parts[i]) for i in ids]
        cohort = fl.federated.cohort(ids, RANKS[ids], sizes, rows, round=t, data=train)
        state, _ = step(base, state, cohort)
        history.append(accuracy(fl.federated.global_params(rule, base, state), test))
    found = {"method": method, "ranks": RANKS[:4].tolist(), "rounds": rounds}
    found |= {"base_on_upright": accuracy(base, upright_test), "base_on_turned": history[0]}
    return found | {"adapted_on_turned": history[-1], "history": history}


if __name__ == "__main__":
    (RESULTS / "own_model.json").write_text(json.dumps(main(), indent=2) + "\n", encoding="utf-8")
