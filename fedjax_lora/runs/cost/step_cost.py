"""Trace a client's local step without computing it, and count its operations."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lora.core.types import BatchShape, ClientParams, Params, PyTree
from fedjax_lora.data import Tokens
from fedjax_lora.federated.training import make_batch
from fedjax_lora.runs.compilation import InputSpec, RoundSpec
from fedjax_lora.runs.cost import flops


def step_flops(
    round_spec: RoundSpec, base: Params, trained: ClientParams, data: Tokens
) -> dict[BatchShape, int]:
    """Return the operations of a client's step, by the shape of the step."""

    def of_shape(shape: BatchShape) -> int:
        step, of_clients = trace(round_spec.inputs, round_spec, base, trained, data, shape)
        backward = lambda *given: step(*given)[1](jnp.ones(()))  # noqa: E731
        return flops.of(backward, base, *of_clients(1))

    return {shape: of_shape(shape) for shape in round_spec.shapes}


def trace(
    inputs: InputSpec,
    round_spec: RoundSpec,
    base: Params,
    trained: ClientParams,
    data: Tokens,
    shape: BatchShape,
) -> tuple[Callable[..., PyTree], Callable[[int], Iterator[PyTree]]]:
    """Build the step of some clients on a batch of a shape, for tracing.

    Args:
      inputs: how the model reads the data.
      round_spec: spec of the round.
      base: shapes of the base.
      trained: shapes of a client's adapter and head.
      data: shapes of the training tokens.
      shape: shape of the step.

    Returns:
      ``step(base, *clients) -> (loss, backward pass)``, where the backward pass is a pytree of the
      values that it keeps; and ``of_clients(count)``, the shapes of the arguments ``clients``.
    """
    objective, spec = inputs.objective(), round_spec.spec
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
