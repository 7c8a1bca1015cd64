"""A client's local step as JAX traces it, without an array."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lora.core.types import BatchShape, ClientParams, Params
from fedjax_lora.data import Tokens
from fedjax_lora.federated.training import make_batch
from fedjax_lora.runs.compilation import InputSpec, RoundSpec
from fedjax_lora.runs.cost import flops


def step_flops(
    recipe: RoundSpec, base: Params, trained: ClientParams, data: Tokens
) -> dict[BatchShape, int]:
    """Of a client's step, by its shape."""

    def of_shape(shape: BatchShape) -> int:
        step, of_clients = trace(recipe.reading, recipe, base, trained, data, shape)
        backward = lambda *given: step(*given)[1](jnp.ones(()))  # noqa: E731
        return flops.of(backward, base, *of_clients(1))

    return {shape: of_shape(shape) for shape in recipe.shapes}


def trace(
    reading: InputSpec,
    recipe: RoundSpec,
    base: Params,
    trained: ClientParams,
    data: Tokens,
    shape: BatchShape,
) -> tuple[Callable[..., Any], Callable[[int], Iterator[Any]]]:
    """``(base, *clients) -> (loss, backward pass)`` of a batch, and shapes of so many clients.

    The backward pass is a pytree of what it keeps.
    """
    objective, spec = reading.objective(), recipe.spec
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
