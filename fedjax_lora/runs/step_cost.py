"""Trace a client's local step without computing it, and count its operations."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lora.core import flops
from fedjax_lora.core.types import BatchShape, ClientParams, Params, PyTree
from fedjax_lora.data import Tokens
from fedjax_lora.federated.training import make_batch
from fedjax_lora.lora import LoraSpec
from fedjax_lora.runs.compilation import InputSpec, RoundSpec


def step_flops(
    round_spec: RoundSpec, base: Params, trained: ClientParams, data: Tokens
) -> dict[BatchShape, int]:
    """Return the operations of a client's step, by the shape of the step."""
    inputs, spec = round_spec.inputs, round_spec.spec
    return {s: shape_flops(inputs, spec, base, trained, data, s) for s in round_spec.shapes}


def shape_flops(
    inputs: InputSpec,
    spec: LoraSpec,
    base: Params,
    trained: ClientParams,
    data: Tokens,
    shape: BatchShape,
) -> int:
    """Return the operations of a client's step of a shape; the arguments are those of `trace`."""
    step, of_clients = trace(inputs, spec, base, trained, data, shape)
    backward = lambda *given: step(*given)[1](jnp.ones(()))  # noqa: E731
    return flops.of(backward, base, *of_clients(1))


def trace(
    inputs: InputSpec,
    spec: LoraSpec,
    base: Params,
    trained: ClientParams,
    data: Tokens,
    shape: BatchShape,
) -> tuple[Callable[..., PyTree], Callable[[int], Iterator[PyTree]]]:
    """Build the step of some clients on a batch of a shape, for tracing.

    Args:
      inputs: how the model reads the data.
      spec: the adapted layers.
      base: shapes of the base.
      trained: shapes of a client's adapter and head.
      data: shapes of the training tokens.
      shape: shape of the step.

    Returns:
      ``step(base, *clients) -> (loss, backward pass)``, where the backward pass is a pytree of the
      values that it keeps; and ``of_clients(count)``, the shapes of the arguments ``clients``.
    """
    objective = inputs.objective()
    gain = {
        target.path: jax.ShapeDtypeStruct((*target.stack, spec.rank), jnp.float32)
        for target in spec.targets
    }
    rows = jax.ShapeDtypeStruct((shape.rows,), jnp.int32)
    valid = jax.ShapeDtypeStruct((shape.rows,), bool)
    batch = jax.eval_shape(functools.partial(make_batch, objective, shape), data, rows, valid)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def step(
        base: Params, trained: ClientParams, gain: Any, batch: Any, valid: Any, key: Any
    ) -> Any:
        def loss(trained: ClientParams) -> Any:
            one = lambda *own: objective.loss(base, own[0], own[1], None, *own[2:])  # noqa: E731
            return jnp.sum(jax.vmap(one)(trained, gain, batch, valid, key))

        return jax.vjp(loss, trained)

    def of_clients(count: int) -> Iterator[Any]:
        stacked = lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype)  # noqa: E731
        return (jax.tree.map(stacked, one) for one in (trained, gain, batch, valid, key))

    return step, of_clients
