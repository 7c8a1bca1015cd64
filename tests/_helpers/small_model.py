"""A scanned Linen model without any code for adapters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.types import Adapter, Gain, LoRA
from fedjax_lora.lora import LoraSpec

DEPTH, WIDTH, HIDDEN, CLASSES, R = 3, 12, 10, 7, 4
TARGETS = ("/(query|value)$", "^head$")


class Block(nn.Module):
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        gate = nn.Dense(HIDDEN, name="query", dtype=self.dtype)(x)
        value = nn.Dense(HIDDEN, name="value", dtype=self.dtype)(x)
        return x + nn.Dense(WIDTH, name="output", dtype=self.dtype)(jnp.tanh(gate) * value), None


class Net(nn.Module):
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(WIDTH, name="embed", dtype=self.dtype)(x)
        stack = nn.scan(Block, variable_axes={True: 0}, split_rngs={True: True}, length=DEPTH)
        x, _ = stack(self.dtype, name="layers")(x, None)
        return nn.Dense(CLASSES, name="head", dtype=self.dtype)(x)


NET = Net()
PARAMS = jax.jit(NET.init)(jax.random.key(0), jnp.zeros((1, 5)))["params"]
INPUT = jax.random.normal(jax.random.key(1), (6, 5))


def spec(**options: Any) -> LoraSpec:
    return lora.make_spec(PARAMS, **{"targets": TARGETS, "rank": R, "alpha": 6.0} | options)


TEMPLATE = spec()


def random_adapter(where: LoraSpec, seed: int = 0, *batch: int) -> Adapter:
    """Both factors random; layers left out are zero."""
    rng = np.random.default_rng(seed)
    pairs = {}
    for target in where.targets:
        a = rng.normal(size=(*batch, *target.stack, target.inputs, where.rank)) * 0.3
        b = rng.normal(size=(*batch, *target.stack, where.rank, target.outputs)) * 0.3
        if target.layers is not None:
            a[..., ~np.array(target.layers), :, :] = 0
            b[..., ~np.array(target.layers), :, :] = 0
        pairs[target.path] = LoRA(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    return pairs


def cut(adapter: Adapter, rank: int) -> Adapter:
    """The first components; the others are zero, the shapes stay."""
    return {
        path: LoRA(pair.a.at[..., rank:].set(0), pair.b.at[..., rank:, :].set(0))
        for path, pair in adapter.items()
    }


@jax.jit
def plain(params: Any, x: jax.Array) -> jax.Array:
    return NET.apply({"params": params}, x)


@jax.jit
def adapted(params: Any, adapter: Adapter, gain: Gain, x: jax.Array) -> jax.Array:
    return lora.apply(NET, params, adapter, gain, x)
