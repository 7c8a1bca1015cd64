"""Federated LoRA of a Flax NNX model: clients of ranks 2, 4 and 8 adapt it to digits upside down.

The base is a small NNX transformer that reads the rows of an image; it is pretrained on upright
digits and has no code for adapters. Run ``python -m experiments.examples.nnx_model``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from fedjax_lora import federated, lora, methods

RANKS, CLIENTS, STEPS, BATCH = (2, 4, 8), 12, 10, 16


class Reader(nnx.Module):
    """One attention layer over the eight rows of an image."""

    def __init__(self, rngs: nnx.Rngs, width: int = 32):
        self.rows = nnx.Linear(8, width, rngs=rngs)
        self.position = nnx.Param(jax.random.normal(rngs.params(), (8, width)) * 0.1)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.classes = nnx.LinearGeneral((8, width), 10, axis=(-2, -1), rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        """Logits ``[n, 10]`` of images ``[n, 8, 8]``."""
        x = self.rows(image) + self.position[...][None]
        return self.classes(jnp.tanh(x + self.attention(x)))


def loss_fn(apply: Callable[..., jax.Array], batch: dict[str, Any], key: Any) -> jax.Array:
    """Cross-entropy of each image."""
    del key
    return optax.softmax_cross_entropy_with_integer_labels(apply(batch["image"]), batch["label"])


@nnx.jit
def pretrain(module: Reader, optimizer: nnx.Optimizer, data: dict[str, Any]) -> None:
    """One step of training all parameters, in place."""
    gradients = nnx.grad(lambda module: jnp.mean(loss_fn(module, data, None)))(module)
    optimizer.update(module, gradients)


def main(*, rounds: int = 30, steps: int = 150) -> list[float]:
    """Accuracy on turned digits before the first round and after the last."""
    found: Any = load_digits()
    image, label = found.images.astype(np.float32) / 16, found.target.astype(np.int32)
    module = Reader(nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, optax.adam(5e-3), wrt=nnx.Param)
    for _ in range(steps):
        pretrain(module, optimizer, {"image": image, "label": label})
    image = image[:, ::-1, ::-1]

    model, params = lora.nnx.split(module)
    spec = lora.make_spec(params, targets=["attention", "classes"], rank=max(RANKS))
    method = methods.hlora(spec)
    train = federated.local_training(model, loss_fn, optax.adam(1e-2))
    step = federated.make_round(method, train)
    state = federated.init(method, params, jax.random.key(0), num_clients=CLIENTS)
    rng, data = np.random.default_rng(0), {"image": image[:1400], "label": label[:1400]}
    ranks = np.resize(RANKS, CLIENTS)
    for t in range(rounds):
        ids = rng.choice(CLIENTS, size=6, replace=False)
        # The images of client k are those whose number leaves the remainder k.
        rows = CLIENTS * rng.integers(116, size=(6, STEPS, BATCH)) + ids[:, None, None]
        cohort = federated.cohort(ids, ranks[ids], 1.0, rows, data=data, round=t)
        state, _ = step(params, state, cohort)
    trained = model.merge(federated.global_params(method, params, state))
    return [float(jnp.mean(m(image[1400:]).argmax(1) == label[1400:])) for m in (module, trained)]


if __name__ == "__main__":
    print(main())
