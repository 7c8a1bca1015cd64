"""Local training: every client of a wave takes its own steps on its own examples.

The loop over steps is outside and the `vmap` over clients inside, so that the number of iterations
is what the wave's busiest client needs (a traced number: no compilation per cohort) and every step
has the first of a few shapes that its own batches fit into. Clients that are done keep their
values.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.types import (
    EQUAL_RATES,
    Adapter,
    Array,
    Batches,
    BatchShape,
    ClientParams,
    Gain,
    Key,
    LoRA,
    Params,
    Rates,
)
from fedjax_lora.federated.objectives import Objective

Penalty = Callable[[Adapter, Array], Array]
Project = Callable[[Adapter], Adapter]


class Clients(NamedTuple):
    """Everything a cohort's local training needs, every leaf with a leading client axis."""

    params: ClientParams  # values at the start
    gain: Gain
    trainable: ClientParams  # booleans that broadcast against params
    rank: Array  # int32[c]
    batches: Batches
    key: Key  # [c]


class Report(NamedTuple):
    """What a client tells about its training."""

    loss: Array  # float32[c], mean over the examples it saw, with the parameters of that step
    examples: Array  # float32[c], examples seen, counting repetitions


Train = Callable[[Params, Any, Clients, Array], tuple[ClientParams, Report]]


def split_gain(gain: Gain, trainable: Adapter) -> tuple[Gain, Gain]:
    """The gain of trained components, and of those that act but are fixed (folded)."""
    masks = lora.masked_components(trainable)
    return (
        {path: jnp.where(masks[path], g, 0) for path, g in gain.items()},
        {path: jnp.where(masks[path], 0, g) for path, g in gain.items()},
    )


def _at_rates(rates: Rates, steps: ClientParams) -> ClientParams:
    if rates == EQUAL_RATES:
        return steps
    adapter = {p: LoRA(rates.a * pair.a, rates.b * pair.b) for p, pair in steps.adapter.items()}
    coefficients = jax.tree.map(lambda x: rates.coefficients * x, steps.coefficients)
    return steps._replace(adapter=adapter, coefficients=coefficients)


def _projected(project: Project, new: ClientParams, trainable: ClientParams) -> ClientParams:
    adapter = jax.tree.map(
        lambda x, kept, m: jnp.where(m, x, kept),
        project(new.adapter),
        new.adapter,
        trainable.adapter,
    )
    return new._replace(adapter=adapter)


def make_batch(
    objective: Objective, shape: BatchShape, data: Any, index: Array, valid: Array
) -> Any:
    """The batch of a step of some shape."""
    batch = objective.take(data, index, shape.length)
    if objective.unpad is None or shape.padded:
        return batch
    return objective.unpad(batch, valid, shape.tokens)


def _smallest(shapes: Sequence[BatchShape], *need: Array) -> Array:
    """The index of the first shape that has room for so much; of the last if none has."""
    fits = jnp.all(jnp.asarray(shapes) >= jnp.stack(need)[None], axis=1)
    return jnp.argmax(fits.at[-1].set(True)).astype(jnp.int32)


def make_training(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    penalty: Penalty | None = None,
    rates: Rates = EQUAL_RATES,
    project: Project | None = None,
    split_gains: bool = False,
    shapes: Sequence[BatchShape] | None = None,
    prox: float = 0.0,
) -> Train:
    """Local training of a wave of clients.

    Args:
      objective: the task.
      optimizer: any optax optimizer of learning rate 1; the learning rate is an argument of the
        returned function, so trying another one compiles nothing.
      penalty: a method's addition to the loss, ``(adapter, rank) -> float32[]``.
      rates: multiplies the learning rate of each factor, and of coefficients.
      project: applied to a client's adapter after every step, see `fedjax_lora.methods.Method`.
      split_gains: tell the objective which components are fixed (LoRA dropout needs it).
      shapes: of the steps to compile, ascending, see `fedjax_lora.data.batch_shapes`; by default
        that of a full batch with each of the objective's lengths.
      prox: FedProx's `mu` (arXiv 1812.06127): ``mu/2 ||x - x_start||^2`` is part of what a client
        minimises, but not of the loss it reports.

    Returns:
      ``train(base, data, clients, learning_rate) -> (ClientParams [w, ...], Report [w])``.
    """

    def loss_of(
        trained: ClientParams, base: Params, client: Clients, batch: Any, valid: Array, key: Key
    ):
        gain, fixed = lora.times(client.gain, trained.coefficients), None
        if split_gains:
            gain, fixed = split_gain(gain, client.trainable.adapter)
        loss = objective.loss(base, trained, gain, fixed, batch, valid, key)
        extra = jnp.zeros(()) if penalty is None else penalty(trained.adapter, client.rank)
        return loss + extra, loss

    def one_client(base, data, step, shape, rate, client, params, opt_state):
        valid = client.batches.valid[step, : shape.rows]
        index = client.batches.index[step, : shape.rows]
        batch = make_batch(objective, shape, data, index, valid)
        key = jax.random.fold_in(client.key, step)
        (_, loss), grads = jax.value_and_grad(loss_of, has_aux=True)(
            params, base, client, batch, valid, key
        )
        if prox:
            pull = lambda g, x, x0: g + prox * (x - x0)  # noqa: E731
            grads = jax.tree.map(pull, grads, params, client.params)
        hold = lambda tree: jax.tree.map(  # noqa: E731
            lambda x, m: jnp.where(m, x, 0), tree, client.trainable
        )
        # optax itself is written for JAX's standard promotion (its bias correction is f32 ** i32).
        with jax.numpy_dtype_promotion("standard"):
            updates, new_state = optimizer.update(hold(grads), opt_state, params)
        steps = jax.tree.map(lambda u: rate * u, updates)
        new: Any = optax.apply_updates(params, hold(_at_rates(rates, steps)))
        if project is not None:
            new = _projected(project, new, client.trainable)
        going = step < client.batches.steps
        count = jnp.where(going, jnp.sum(valid).astype(jnp.float32), 0.0)
        params, opt_state = trees.where(going, (new, new_state), (params, opt_state))
        return params, opt_state, Report(jnp.where(going, loss * count, 0.0), count)

    def train(
        base: Params, data: Any, clients: Clients, rate: Array
    ) -> tuple[ClientParams, Report]:
        def step(t: Array, carry: tuple) -> tuple:
            params, opt_state, total = carry

            def of_shape(shape: BatchShape) -> Callable[[], tuple]:
                def run() -> tuple:
                    each = lambda *args: one_client(base, data, t, shape, rate, *args)  # noqa: E731
                    return jax.vmap(each)(clients, params, opt_state)

                return run

            work = clients.batches
            going = t < work.steps
            most = lambda x: jnp.max(jnp.where(going, x[:, t], 0))  # noqa: E731
            # Valid rows come first.
            full = jnp.max(jnp.sum(work.valid[:, t], axis=1, dtype=jnp.int32))
            size = work.valid.shape[-1]
            choice = shapes or [BatchShape(size, n, size * n) for n in objective.lengths]
            at = _smallest(choice, full, most(work.longest), most(work.tokens))
            params, opt_state, new = jax.lax.switch(at, [of_shape(shape) for shape in choice])
            return params, opt_state, jax.tree.map(jnp.add, total, new)

        count = clients.rank.shape[0]
        start = (
            clients.params,
            jax.vmap(optimizer.init)(clients.params),
            Report(jnp.zeros(count), jnp.zeros(count)),
        )
        last = jnp.max(clients.batches.steps)
        params, _, total = jax.lax.fori_loop(0, last, step, start)
        mean = trees.safe_divide(total.loss, total.examples, jnp.zeros(()))
        return params, total._replace(loss=mean)

    return train
