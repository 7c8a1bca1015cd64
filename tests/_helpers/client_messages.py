"""The updates of a small cohort, and their values as NumPy arrays."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora, methods
from fedjax_lora.core.types import ClientParams, LoRA
from fedjax_lora.federated import transforms
from fedjax_lora.lora import LoraSpec, LoraTarget

TEMPLATE = LoraSpec(
    targets=(
        LoraTarget("block/layers/query", 12, 10, (True, False, True)),
        LoraTarget("out", 7, 5, None),
    ),
    rank=3,
    alpha=3.0,
)
RANK = np.array([1, 2, 3, 3, 2, 3])
WEIGHT = np.array([4, 1, 2, 3, 5, 0], np.float32)  # the last is absent
PRESENT = 5


class Sent(NamedTuple):
    start: ClientParams
    trained: ClientParams
    trainable: ClientParams
    weight: jax.Array
    ids: jax.Array


def spec(text: str) -> transforms.UpdateTransform:
    """The update of a spec, before a method that goes with all of them."""
    method = methods.make("masked_mean", TEMPLATE)
    return transforms.make_transforms([text], method)[0]


@functools.cache
def cohort(seed: int = 0, size: float = 1.0) -> Sent:
    """Mixed ranks; client `k` changes its numbers by about ``size * (k + 1)``; NaN if absent."""
    rng, count = np.random.default_rng(seed), len(RANK)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return rng.normal(size=(count, *shape)).astype(np.float32)

    mask = lora.factor_mask(
        lora.spread(TEMPLATE, lora.prefix_mask(jnp.asarray(RANK), TEMPLATE.rank))
    )
    begin = {p: LoRA(*(draw(x.shape) for x in pair)) for p, pair in TEMPLATE.shapes().items()}
    start = ClientParams(lora.keep(begin, mask), {"kernel": draw((6, 4)), "bias": draw((4,))})
    head_mask = {"kernel": jnp.ones((count, 1, 1), bool), "bias": jnp.ones((count, 1), bool)}
    trainable = ClientParams(mask, head_mask)

    def move(x: Any, m: Any) -> np.ndarray:
        step = size * np.arange(1, count + 1, dtype=np.float32).reshape(-1, *(1,) * (x.ndim - 1))
        new = np.where(m, x + step * draw(x.shape[1:]), x).astype(np.float32)
        new[PRESENT:] = np.nan
        return new

    trained = jax.tree.map(move, start, trainable)
    place = lambda tree: jax.tree.map(jnp.asarray, tree)  # noqa: E731
    return Sent(
        place(start), place(trained), trainable, jnp.asarray(WEIGHT), jnp.array([9, 2, 4, 0, 7, 10])
    )


@functools.cache
def compiled(*specs: str) -> Any:
    updates = tuple(map(spec, specs))
    return jax.jit(lambda sent, key: transforms.apply_transforms(updates, *sent, key))


def send(sent: Sent, *specs: str, key: int = 0) -> tuple[ClientParams, np.ndarray]:
    """What the server reads after these updates."""
    trained, weight = compiled(*specs)(sent, jax.random.key(key))
    return trained, np.asarray(weight)


def own(tree: ClientParams, mask: ClientParams, k: int, *, frozen: bool = False) -> np.ndarray:
    """The numbers that client `k` trains (or does not), one after the other, float64."""
    parts = [
        np.asarray(x)[k][np.broadcast_to(np.asarray(m), x.shape)[k] ^ frozen]
        for x, m in zip(*map(jax.tree.leaves, (tree, mask)), strict=True)
    ]
    return np.concatenate(parts).astype(np.float64)


def change(sent: Sent, trained: ClientParams, k: int) -> np.ndarray:
    """By how much a client's trained numbers moved."""
    return own(trained, sent.trainable, k) - own(sent.start, sent.trainable, k)


def matrices(tree: ClientParams) -> list[np.ndarray]:
    """Every factor of every adapted layer and every array of the head, ``[c, ...]`` each."""
    found = []
    for target in TEMPLATE.targets:
        for x in tree.adapter[target.path]:
            chosen = np.flatnonzero(target.layers) if target.layers else [...]
            found += [np.asarray(x, np.float64)[:, n] if target.layers else x for n in chosen]
    return [np.asarray(x, np.float64) for x in [*found, *jax.tree.leaves(tree.head)]]
