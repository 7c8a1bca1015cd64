"""Bytes on one device while a cohort is trained."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_lora import models
from fedjax_lora.core import trees
from fedjax_lora.core.types import ClientParams, Params
from fedjax_lora.data import Tokens
from fedjax_lora.federated import base_sharding
from fedjax_lora.federated.causal_lm import CHUNK_NUMBERS
from fedjax_lora.methods.base import FLOAT_BYTES
from fedjax_lora.models.layer_stack import layers_per_step
from fedjax_lora.runs.compilation import InputSpec, RoundSpec
from fedjax_lora.runs.cost.step_cost import trace


class Memory(NamedTuple):
    """Bytes on one device while a cohort is trained.

    Attributes:
      base: the frozen model, once, or the device's part of it.
      server: the global adapter and head, what a method and a server optimizer keep (kernels that
        FLoRA changes, for example), and what belongs to single clients between rounds.
      data: the training tokens.
      client: what each client of the cohort begins with and returns.
      working: what each client of a wave needs to take a step: a copy of what it trains, its
        gradient and update, and the state of its optimizer.
      activations: what each client of a wave holds between the forward and the backward pass; a
        bound where the base is in parts, since the compiler then divides some of them too.
      layers: parameters of the layers that one step of the layer loop takes out of their stack:
        of one layer, of all of them where a loop is unrolled, of none without one.
      cohort: clients on the device.
      clients_per_step: clients trained at once.
    """

    base: int
    server: int
    data: int
    client: int
    working: int
    activations: int
    layers: int
    cohort: int
    clients_per_step: int

    @property
    def total(self) -> int:
        """The sum, each part as often as it is there."""
        once = self.base + self.server + self.data + self.layers
        return (
            once
            + self.cohort * self.client
            + self.clients_per_step * (self.working + self.activations)
        )


def base_bytes(base: Params, mesh: Mesh | None) -> int:
    """Bytes of the base that one device keeps."""
    if mesh is None:
        return trees.size_bytes(base)
    part = lambda x, where: jax.ShapeDtypeStruct(where.shard_shape(x.shape), x.dtype)  # noqa: E731
    return trees.size_bytes(jax.tree.map(part, base, base_sharding(base, mesh)))


def layers_taken_out(config: Any) -> int:
    """Layers that one step of the layer loop takes out of their stack."""
    if models.has_split_layers(config):
        return 0
    return layers_per_step(config.layers, config.scan_unroll)


def layer_bytes(base: Params) -> int:
    """One layer's matrices; in float32 if they are kept as codes."""
    in_full = lambda x: isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    return sum(
        math.prod(leaf.shape[1:]) * (leaf.dtype.itemsize if in_full(leaf) else FLOAT_BYTES)
        for path, leaf in trees.flat(base).items()
        if "/layers/" in path and path.endswith("/kernel")
    )


def activations(recipe: RoundSpec, base: Params, trained: ClientParams, data: Tokens) -> int:
    """What one more client of a wave holds on to in a full batch of the longest texts.

    That is what a gradient keeps between its passes, and what comes on top of it for a while: the
    gradient of the logits that are made at a time, then, where layers are recomputed, all of one
    layer. Where logits are made in parts, they are not in what is kept either, and there are their
    exponentials.
    """
    reading = recipe.reading
    kept, for_a_while = _kept(reading, recipe, base, trained, data), [0]
    config = reading.module.config  # type: ignore[attr-defined]
    if config.remat:
        once = reading.module.clone(config=dataclasses.replace(config, remat=False))
        whole = _kept(dataclasses.replace(reading, module=once), recipe, base, trained, data)
        for_a_while.append((whole - kept) // config.layers)
    if reading.kind == "language":
        length = min(reading.lengths[-1], data.ids.shape[1])
        numbers = recipe.batch * (length - 1) * config.vocab_size
        made = numbers if numbers <= CHUNK_NUMBERS else 3 * CHUNK_NUMBERS
        for_a_while.append(FLOAT_BYTES * made)
    return kept + max(for_a_while)


def _kept(
    reading: InputSpec, recipe: RoundSpec, base: Params, trained: ClientParams, data: Tokens
) -> int:
    """Bytes that the gradient of a second client adds to those of a first one."""
    step, of_clients = trace(reading, recipe, base, trained, data, recipe.shapes[-1])

    def size(count: int) -> int:
        kept = jax.tree.leaves(jax.eval_shape(lambda *x: step(*x)[1], base, *of_clients(count)))
        return trees.size_bytes(
            [x for x in kept if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
        )

    return size(2) - size(1)
