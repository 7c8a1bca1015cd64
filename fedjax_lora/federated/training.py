"""Local training: every client of a group takes its own steps on its own examples.

The loop over steps is outside and the `vmap` over clients inside, so that the number of iterations
is what the busiest client of the group needs (a traced number: no compilation per cohort) and every
step has the first of a few shapes that its own batches fit into. Clients that have finished keep
their values.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fedjax_lora import lora
from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import check_fields
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
    PyTree,
    Rates,
)
from fedjax_lora.federated.objectives import (
    AdaptedForward,
    LossFn,
    TrainingObjective,
    mean_of_examples,
)
from fedjax_lora.methods.base import Method


class Clients(NamedTuple):
    """Everything a cohort's local training needs, every leaf with a leading client axis."""

    params: ClientParams  # values at the start
    gain: Gain
    trainable: ClientParams  # booleans that broadcast against params
    rank: Array  # int32[c]
    batches: Batches
    key: Key  # [c]


class ClientMetrics(NamedTuple):
    """Metrics of each client's local training."""

    loss: Array  # float32[c], mean over the examples it saw, with the parameters of that step
    examples: Array  # float32[c], examples seen, counting repetitions


TrainFn = Callable[[Params, Any, Clients, Array], tuple[ClientParams, ClientMetrics]]
"""``(base, data, clients, learning_rate) -> (ClientParams [w, ...], ClientMetrics [w])``.

The learning rate is ``float32[]``, or ``float32[w]`` where the clients are of several federations
(see `fedjax_lora.federated.CompiledRound.together`)."""


class Training(Protocol):
    """Local training that is completed by what a method asks of it; see `LocalTraining`."""

    def bind(self, method: Method, /) -> TrainFn:
        """The training with the method's penalty, learning rates and projection."""
        ...


class ClientHooks(NamedTuple):
    """What a method adds to local training, see `fedjax_lora.methods.Method`."""

    penalty: Callable[[Adapter, Array], Array] | None = None
    rates: Rates = EQUAL_RATES
    project: Callable[[Adapter], Adapter] | None = None


NO_HOOKS = ClientHooks()

STEPS = "local_steps"
"""Scope of the loop over local steps in programs and profiles."""


@dataclasses.dataclass(frozen=True, eq=False)
class LocalTraining:
    """Local training of a group of clients; called as a `TrainFn`.

    `fedjax_lora.federated.make_round` completes it by `bind`, so that no hook of a method can be
    forgotten. Without a method (no ``hooks``) it is plain local training.

    Attributes:
      objective: the loss over a batch and how a batch is taken from the data.
      optimizer: any optax optimizer. Its updates are multiplied by the learning rate of the call,
        so that another one compiles nothing; give it learning rate 1 if that is all of it.
      separate_fixed: pass the gains of fixed components to the objective apart from those of
        trained ones (LoRA dropout needs it).
      shapes: of the steps to compile, ascending, see `fedjax_lora.data.batch_shapes`; by default
        that of a full batch with each of the objective's lengths.
      prox: FedProx's `mu` (arXiv 1812.06127): ``mu/2 ||x - x_start||^2`` is part of what a client
        minimises, but not of the loss it reports.
      hooks: set by `bind`.
    """

    objective: TrainingObjective
    optimizer: optax.GradientTransformation
    _: dataclasses.KW_ONLY
    separate_fixed: bool = False
    shapes: Sequence[BatchShape] | None = None
    prox: float = 0.0
    hooks: ClientHooks = NO_HOOKS

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.prox < math.inf:
            raise InputError(f"Local training needs prox of at least 0, got {self.prox}.")

    def bind(self, method: Method, /) -> TrainFn:
        """The same training with the hooks of a method."""
        hooks = ClientHooks(method.penalty, method.rates, method.project)
        return dataclasses.replace(self, hooks=hooks)

    def __call__(
        self, base: Params, data: PyTree, clients: Clients, rate: Array
    ) -> tuple[ClientParams, ClientMetrics]:
        """Train all clients of a group; ``rate`` is the learning rate ``float32[]``, or ``[w]``."""
        shapes = self._shapes(clients.batches)

        def step(t: Array, carry: tuple) -> tuple:
            params, opt_state, total = carry
            branches = [
                functools.partial(
                    self._step_of_all, shape, base, data, t, rate, clients, params, opt_state
                )
                for shape in shapes
            ]
            index = _shape_index(shapes, clients.batches, t)
            params, opt_state, new = jax.lax.switch(index, branches)
            return params, opt_state, jax.tree.map(jnp.add, total, new)

        count = clients.rank.shape[0]
        start = (
            clients.params,
            jax.vmap(self.optimizer.init)(clients.params),
            ClientMetrics(jnp.zeros(count), jnp.zeros(count)),
        )
        last = jnp.max(clients.batches.steps)
        with jax.named_scope(STEPS):  # how often it runs is not in the text of the program
            params, _, total = jax.lax.fori_loop(0, last, step, start)
        mean = trees.safe_divide(total.loss, total.examples, jnp.zeros(()))
        return params, total._replace(loss=mean)

    def _shapes(self, batches: Batches) -> Sequence[BatchShape]:
        size = batches.valid.shape[-1]
        return self.shapes or [BatchShape(size, n, size * n) for n in self.objective.lengths]

    def _step_of_all(
        self,
        shape: BatchShape,
        base: Params,
        data: Any,
        step: Array,
        rate: Array,
        clients: Clients,
        params: ClientParams,
        opt_state: Any,
    ) -> tuple[ClientParams, Any, ClientMetrics]:
        """One step of every client; the results have a leading client axis."""
        one = functools.partial(self._step_of_one, shape, base, data, step)
        of_each = 0 if jnp.ndim(rate) else None
        return jax.vmap(one, in_axes=(of_each, 0, 0, 0))(rate, clients, params, opt_state)

    def _step_of_one(
        self,
        shape: BatchShape,
        base: Params,
        data: Any,
        step: Array,
        rate: Array,
        client: Clients,
        params: ClientParams,
        opt_state: Any,
    ) -> tuple[ClientParams, Any, ClientMetrics]:
        """One step of one client; its values do not change after its last step."""
        valid = jnp.asarray(client.batches.valid)[step, : shape.rows]
        index = jnp.asarray(client.batches.index)[step, : shape.rows]
        batch = make_batch(self.objective, shape, data, index, valid)
        key = jax.random.fold_in(client.key, step)
        (_, loss), grads = jax.value_and_grad(self._loss, has_aux=True)(
            params, base, client, batch, valid, key
        )
        new, new_state = self._updated(grads, rate, client, params, opt_state)
        going = step < client.batches.steps
        count = jnp.where(going, jnp.sum(valid).astype(jnp.float32), 0.0)
        params, opt_state = trees.where(going, (new, new_state), (params, opt_state))
        return params, opt_state, ClientMetrics(jnp.where(going, loss * count, 0.0), count)

    def _loss(
        self,
        params: ClientParams,
        base: Params,
        client: Clients,
        batch: Any,
        valid: Array,
        key: Key,
    ) -> tuple[Array, Array]:
        """What a client minimises, and the loss of the batch alone, both ``float32[]``."""
        gain, fixed = client.gain, None
        if self.separate_fixed:
            gain, fixed = split_gain(gain, client.trainable)
        factors = lora.fold(params.adapter, params.coefficients)
        used = params._replace(adapter=factors)
        loss = self.objective.loss(base, used, gain, fixed, batch, valid, key)
        penalty = self.hooks.penalty
        extra = jnp.zeros(()) if penalty is None else penalty(params.adapter, client.rank)
        return loss + extra, loss

    def _updated(
        self, grads: ClientParams, rate: Array, client: Clients, params: ClientParams, state: Any
    ) -> tuple[ClientParams, Any]:
        """One client's parameters and optimizer state after a step; only trained entries change."""
        if self.prox:
            pull = lambda g, x, x0: g + self.prox * (x - x0)  # noqa: E731
            grads = jax.tree.map(pull, grads, params, client.params)
        # optax itself is written for JAX's standard promotion (its bias correction is f32 ** i32).
        with jax.numpy_dtype_promotion("standard"):
            updates, state = self.optimizer.update(_masked(grads, client.trainable), state, params)
        steps = jax.tree.map(lambda u: rate * u, updates)
        steps = _masked(_at_rates(self.hooks.rates, steps), client.trainable)
        new: Any = optax.apply_updates(params, steps)
        if self.hooks.project is not None:
            new = _projected(self.hooks.project, new, client.trainable)
        return new, state


def local_training(
    module: nn.Module | AdaptedForward,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    lora_dropout: float = 0.0,
    prox: float = 0.0,
) -> LocalTraining:
    """Local training of a model and a loss of your own.

    >>> import flax.linen as nn, optax
    >>> def loss_fn(apply, batch, key):
    ...     return optax.l2_loss(apply(batch["x"])[:, 0], batch["y"])
    >>> train = local_training(nn.Dense(1), loss_fn, optax.adamw(1e-3))

    Args:
      module: the Linen module whose parameters the spec was made from, or, for any other model, a
        function ``(params, adapter, gain, *inputs, **options) -> outputs`` that computes with the
        adapter (``options`` hold those of `fedjax_lora.lora.apply`).
      loss_fn: ``(apply, batch, key) -> float32[n]``, the loss of each example. ``apply(*inputs)``
        is the adapted forward pass, called as the module is (``apply(x, train=True,
        rngs={"dropout": key})``); ``batch`` is a pytree of the data's rows ``[n, ...]``; ``key`` is
        a fresh key per client and step. Rows that only fill a batch are left out of the mean.
      optimizer: any optax optimizer with its learning rate; its state is new in every round.
      lora_dropout: rate at which inputs of the trained components are dropped; ``loss_fn`` must
        then give ``apply`` the option ``rngs={"dropout": key}``.
      prox: FedProx's `mu`, see `LocalTraining`.

    Returns:
      Local training for `make_round`, which adds what the method asks for.
    """
    objective = mean_of_examples(module, loss_fn, lora_dropout=lora_dropout)
    return LocalTraining(objective, optimizer, separate_fixed=lora_dropout > 0, prox=prox)


def split_gain(gain: Gain, trainable: ClientParams) -> tuple[Gain, Gain]:
    """The gain of trained components, and of those that act but are fixed (folded)."""
    masks = lora.masked_components(trainable.adapter, trainable.coefficients)
    return (
        {path: jnp.where(masks[path], g, 0) for path, g in gain.items()},
        {path: jnp.where(masks[path], 0, g) for path, g in gain.items()},
    )


def make_batch(
    objective: TrainingObjective, shape: BatchShape, data: PyTree, index: Array, valid: Array
) -> PyTree:
    """The batch of a step of the given shape."""
    batch = objective.take(data, index, shape.length)
    if objective.unpad is None or shape.padded:
        return batch
    return objective.unpad(batch, valid, shape.tokens)


def _shape_index(shapes: Sequence[BatchShape], batches: Batches, step: Array) -> Array:
    """The first of the shapes that fits the batches of all clients in a step: ``int32[]``."""
    going = step < batches.steps
    most = lambda x: jnp.max(jnp.where(going, x[:, step], 0))  # noqa: E731
    # Valid rows come first.
    full = jnp.max(jnp.sum(batches.valid[:, step], axis=1, dtype=jnp.int32))
    need = jnp.stack([full, most(batches.longest), most(batches.tokens)])
    fits = jnp.all(jnp.asarray(shapes) >= need[None], axis=1)
    return jnp.argmax(fits.at[-1].set(True)).astype(jnp.int32)


def _masked(tree: ClientParams, trainable: ClientParams) -> ClientParams:
    return jax.tree.map(lambda x, m: jnp.where(m, x, 0), tree, trainable)


def _at_rates(rates: Rates, steps: ClientParams) -> ClientParams:
    if rates == EQUAL_RATES:
        return steps
    adapter = {p: LoRA(rates.a * pair.a, rates.b * pair.b) for p, pair in steps.adapter.items()}
    coefficients = jax.tree.map(lambda x: rates.coefficients * x, steps.coefficients)
    return steps._replace(adapter=adapter, coefficients=coefficients)


def _projected(
    project: Callable[[Adapter], Adapter], new: ClientParams, trainable: ClientParams
) -> ClientParams:
    adapter = jax.tree.map(
        lambda x, kept, m: jnp.where(m, x, kept),
        project(new.adapter),
        new.adapter,
        trainable.adapter,
    )
    return new._replace(adapter=adapter)
