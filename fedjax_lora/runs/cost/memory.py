"""Estimate the bytes on one device while a cohort is trained."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_lora import models
from fedjax_lora.core import trees
from fedjax_lora.core.target import current_target
from fedjax_lora.core.types import ClientParams, HasShape, Params, PyTree
from fedjax_lora.data import Tokens
from fedjax_lora.federated import base_sharding, optimizers
from fedjax_lora.federated.causal_lm import chunk_of_target
from fedjax_lora.federated.client_update import cohort_of
from fedjax_lora.methods.base import FLOAT_BYTES
from fedjax_lora.models.layer_stack import is_unrolled, layers_per_step
from fedjax_lora.runs.compilation import InputSpec, RoundSpec
from fedjax_lora.runs.cost.outline import Outline, devices_of
from fedjax_lora.runs.step_cost import trace

LANES = 128
"""Numbers in a row of a TPU's vector registers."""


class Memory(NamedTuple):
    """Bytes on one device while a cohort is trained.

    Attributes:
      base: the frozen base, or the device's part of it.
      server: the global adapter and head, the state of method and server optimizer (kernels that
        FLoRA changes, for example), and what clients keep between rounds.
      data: the training tokens.
      client: what each client of the cohort begins with and returns.
      working: what each client that trains at the same time needs to take a step: a copy of its
        trained parameters, its gradient and update, and the state of its optimizer. Where the base
        is divided, the compiler divides this and the activations too.
      activations: what each client that trains at the same time keeps between the forward and the
        backward pass.
      layers: parameters of the layers that are taken out of their stack at a time: those of a step
        of the layer loop, of one layer where the loop is unrolled, of none without a stack.
      cohort: clients on the device.
      clients_per_step: clients trained at the same time.
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
    def per_client(self) -> int:
        """Bytes that each further client that trains at the same time needs."""
        return self.working + self.activations

    @property
    def total(self) -> int:
        """Sum of all parts, each as often as it is needed."""
        once = self.base + self.server + self.data + self.layers
        return once + self.cohort * self.client + self.clients_per_step * self.per_client


def memory_of(outline: Outline) -> Memory:
    """Estimate the bytes on one device while a cohort of a run is trained."""
    round_spec, shapes = outline.round_spec, outline.shapes
    execution, trained = round_spec.execution, stored_bytes(shapes.trained)
    with jax.numpy_dtype_promotion("standard"):  # as optax is written
        optimizer = optimizers.optimizer(round_spec.optimizer, clip=round_spec.clip)
        moments = jax.eval_shape(optimizer.init, shapes.trained)
    devices = devices_of(execution.mesh)
    clients = outline.federation.padded // devices.clients
    of_step = activations(round_spec, shapes.base, shapes.trained, shapes.data)
    return Memory(
        base=base_bytes(shapes.base, execution.mesh),
        server=stored_bytes(shapes.state),
        data=stored_bytes(shapes.data),
        client=_start_bytes(outline) + stored_bytes(shapes.head) + trained,
        working=(3 * trained + stored_bytes(moments)) // devices.model,
        activations=of_step // devices.model,
        layers=layers_taken_out(outline.assets.model.config) * layer_bytes(shapes.base),
        cohort=clients,
        clients_per_step=min(execution.clients_per_step or 1, clients),
    )


def stored_bytes(tree: PyTree) -> int:
    """Return the bytes of arrays on the target.

    A TPU fills one axis of an array up to a multiple of 128; the compiler chooses an axis where
    that costs little. Heads of width 64, and attention over 64 tokens, take twice their size.
    """
    if current_target().platform != "tpu":
        return trees.size_bytes(tree)
    return sum(map(_on_tpu, jax.tree.leaves(tree)))


def _on_tpu(x: HasShape) -> int:
    fills = [math.ceil(n / LANES) * LANES / n for n in x.shape if n]
    return math.ceil(trees.size_bytes(x) * min(fills, default=1.0))


def _start_bytes(outline: Outline) -> int:
    """Return the bytes of what one client of a cohort begins with."""
    plan, method, state = outline.plan(0), outline.setup.method, outline.shapes.state
    cohort = cohort_of(method.spec, plan, plan.weight, jax.random.key(0))
    count = len(plan.id)
    stored = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), state.clients
    )
    start = jax.eval_shape(method.broadcast, state.server, stored.method, cohort)
    return stored_bytes(start) // count


def base_bytes(base: Params, mesh: Mesh | None) -> int:
    """Return the bytes of the base on one device."""
    if mesh is None:
        return stored_bytes(base)
    part = lambda x, where: jax.ShapeDtypeStruct(where.shard_shape(x.shape), x.dtype)  # noqa: E731
    return stored_bytes(jax.tree.map(part, base, base_sharding(base, mesh)))


def layers_taken_out(config: models.EncoderConfig | models.DecoderConfig) -> int:
    """Return how many layers are taken out of their stack at a time: those of a loop's step."""
    if models.has_split_layers(config):
        return 0
    if is_unrolled(config.layers, config.scan_unroll):
        return 1
    return layers_per_step(config.layers, config.scan_unroll)


def layer_bytes(base: Params) -> int:
    """Return the bytes of one layer's matrices; in float32 if they are stored quantized."""
    in_full = lambda x: isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    return sum(
        math.prod(leaf.shape[1:]) * (leaf.dtype.itemsize if in_full(leaf) else FLOAT_BYTES)
        for path, leaf in trees.flat(base).items()
        if "/layers/" in path and path.endswith("/kernel")
    )


def activations(round_spec: RoundSpec, base: Params, trained: ClientParams, data: Tokens) -> int:
    """Estimate what one more client needs for a step on a full batch of the longest texts.

    These are the values that the gradient keeps between its passes, and what is added to them
    temporarily: the gradient of the widest values of a layer, that of the logits that are computed
    at a time, or, where layers are recomputed, the activations of one layer. Logits that are
    computed in chunks are not kept between the passes, but their exponentials are needed with them.
    """
    inputs = round_spec.inputs
    config = inputs.module.config  # type: ignore[attr-defined]
    kept, widest = _kept(inputs, round_spec, base, trained, data)
    temporary = [widest]
    if config.remat:
        module = inputs.module.clone(config=dataclasses.replace(config, remat=False))
        without_remat = dataclasses.replace(inputs, module=module)
        everything, _ = _kept(without_remat, round_spec, base, trained, data)
        temporary.append((everything - kept) // config.layers)
    if inputs.type == "language":
        length = min(inputs.lengths[-1], data.ids.shape[1])
        logits = round_spec.batch * (length - 1) * config.vocab_size
        chunk = chunk_of_target()
        numbers = logits if logits <= chunk else 3 * chunk
        temporary.append(FLOAT_BYTES * numbers)
    return kept + max(temporary)


def _kept(
    inputs: InputSpec, round_spec: RoundSpec, base: Params, trained: ClientParams, data: Tokens
) -> tuple[int, int]:
    """Return the bytes that the gradient of a second client adds to those of a first one.

    Returns:
      Those of all values that are kept, and those of the largest of them in one layer.
    """
    step, of_clients = trace(inputs, round_spec.spec, base, trained, data, round_spec.shapes[-1])
    config = inputs.module.config  # type: ignore[attr-defined]
    # A loop stacks what its layers keep.
    stacked = 1 if is_unrolled(config.layers, config.scan_unroll) else config.layers

    def kept(count: int) -> list[Any]:
        leaves = jax.tree.leaves(jax.eval_shape(lambda *x: step(*x)[1], base, *of_clients(count)))
        return [x for x in leaves if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]

    def of_layer(size: int, x: Any) -> int:
        return size // stacked if x.shape[:1] == (stacked,) else size

    one, two = kept(1), kept(2)
    more = [stored_bytes(y) - stored_bytes(x) for x, y in zip(one, two, strict=True)]
    return sum(more), max(map(of_layer, more, two), default=0)
