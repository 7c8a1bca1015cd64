"""One round of several federations in one program, trained side by side.

The federations differ in what is data: seeds, cohorts, ranks, batches, learning rates, states.
Their frozen base is the same, so that the clients which train at the same time multiply with it in
one product each. What is done once per federation (broadcast, aggregation, server optimizer) is
done for one after the other, exactly as in a round of its own: a batched decomposition would be
another computation, and on some CPU backends a dangerous one.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lora import lora
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.tree_structure import check_same_structure
from fedjax_lora.core.types import Array, Key, Params, PyTree
from fedjax_lora.federated.client_update import ClientParts, CohortUpdate
from fedjax_lora.federated.execution import Execution, default_clients_per_step
from fedjax_lora.federated.state import FederatedState, Plan, RoundMetrics
from fedjax_lora.federated.training import Clients, TrainFn
from fedjax_lora.methods.base import client_kernels

Outcome = tuple[FederatedState, RoundMetrics]

FinishFn = Callable[[FederatedState, Plan, Key, CohortUpdate], Outcome]
"""The second half of a round, ``(state, plan, key, update) -> (state, metrics)``."""

TogetherFn = Callable[
    [Params, PyTree, tuple[FederatedState, ...], tuple[Plan, ...], tuple[Key, ...]],
    tuple[tuple[FederatedState, ...], tuple[RoundMetrics, ...]],
]
"""``(base, data, states, plans, keys) -> (states, metrics)``, each a tuple with one of `S`."""


def make_together(
    parts: ClientParts, train: TrainFn, finish: FinishFn, execution: Execution
) -> TogetherFn:
    """Build the round of several federations from the parts of one.

    Args:
      parts: what happens before local training.
      train: local training with the hooks of the method; it gets the learning rates of its clients,
        ``float32[w]``.
      finish: what happens after it.
      execution: how a cohort is executed, in mode ``vmap``. ``clients_per_step`` counts the clients
        of one federation: so many of each are trained at once.

    Returns:
      A `TogetherFn`, to be compiled.

    Raises:
      InputError: another mode.
    """
    if execution.mode != "vmap":
        raise InputError(
            "Rounds of several federations are trained together on one device, in mode 'vmap', not "
            f"in mode {execution.mode!r}; run them one after another."
        )
    train_all = _side_by_side(train, execution.clients_per_step)

    def update_all(
        base: Params, data: PyTree, states: FederatedState, plans: Plan, keys: Key
    ) -> CohortUpdate:
        init, clients, store = jax.lax.map(lambda x: parts.broadcast(*x), (states, plans, keys))
        rates = jnp.asarray(plans.rate)
        if parts.method.select is not None:
            probed, _ = train_all(base, data, clients, rates)
            selecting = (plans, init, clients, probed)
            init, clients = jax.lax.map(lambda x: parts.select(*x), selecting)
        trained, metrics = train_all(base, data, clients, rates)
        check_same_structure("What local training returns", trained, clients.params)
        return CohortUpdate(init, clients, store, trained, metrics)

    def one_by_one(
        base: Params, data: PyTree, states: FederatedState, plans: Plan, keys: Key
    ) -> CohortUpdate:
        """For a method that changes the base: then the federations have none in common."""

        def alone(x: tuple[FederatedState, Plan, Key]) -> CohortUpdate:
            one = jax.tree.map(lambda leaf: leaf[None], x)
            full = lora.with_kernels(base, client_kernels(parts.method, x[0].server))
            return jax.tree.map(lambda leaf: leaf[0], update_all(full, data, *one))

        return jax.lax.map(alone, (states, plans, keys))

    def together(
        base: Params,
        data: PyTree,
        states: tuple[FederatedState, ...],
        plans: tuple[Plan, ...],
        keys: tuple[Key, ...],
    ) -> tuple[tuple[FederatedState, ...], tuple[RoundMetrics, ...]]:
        stacked = (_stacked(states), _stacked(plans), _stacked(keys))
        shared = not jax.tree.leaves(client_kernels(parts.method, stacked[0].server))
        update = (update_all if shared else one_by_one)(base, data, *stacked)
        after, metrics = jax.lax.map(lambda x: finish(*x), (*stacked, update))
        count = len(states)
        return _unstacked(after, count), _unstacked(metrics, count)

    return together


def joined(data: Sequence[PyTree]) -> tuple[PyTree, list[int]]:
    """Join the examples of federations, unless they are the same object.

    Args:
      data: examples of each federation, leaves ``[E, ...]``; `E` may differ.

    Returns:
      All examples, and the row at which those of each federation begin.
    """
    if all(one is data[0] for one in data):
        return (data[0] if data else None), [0] * len(data)
    counts = [jax.tree.leaves(one)[0].shape[0] for one in data]
    rows = jax.tree.map(lambda *parts: jnp.concatenate(parts), *data)
    return rows, [0, *itertools.accumulate(counts[:-1])]


def shifted(plan: Plan, offset: int) -> Plan:
    """Return the plan of a federation whose examples begin at a row of `joined` ones."""
    return plan._replace(batches=plan.batches._replace(index=plan.batches.index + offset))


def _side_by_side(train: TrainFn, clients_per_step: int | None) -> Callable[..., Any]:
    """Train the cohorts of all federations, leaves ``[S, c, ...]``, some clients of each at once.

    Cohorts are ordered by the number of steps, so that clients at the same place have about as
    many.
    """

    def run(base: Params, data: PyTree, clients: Clients, rates: Array) -> Any:
        count, cohort = clients.rank.shape
        at_once = min(clients_per_step or default_clients_per_step(cohort), cohort)
        if cohort % at_once:
            raise InputError(
                f"Cohorts of {cohort} clients cannot be trained {at_once} at a time; choose "
                "clients_per_step that divides it, or fill them up to Execution.padded_size."
            )
        groups = cohort // at_once

        def split(x: Array) -> Array:
            parts = jnp.moveaxis(x.reshape(count, groups, at_once, *x.shape[2:]), 1, 0)
            return parts.reshape(groups, count * at_once, *x.shape[2:])

        def join(x: Array) -> Array:
            parts = x.reshape(groups, count, at_once, *x.shape[2:])
            return jnp.moveaxis(parts, 0, 1).reshape(count, cohort, *x.shape[2:])

        own_rates = jnp.repeat(rates, at_once)
        out = jax.lax.map(
            lambda part: train(base, data, part, own_rates), jax.tree.map(split, clients)
        )
        return jax.tree.map(join, out)

    return run


def _stacked(trees: tuple[Any, ...]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)


def _unstacked(tree: Any, count: int) -> tuple[Any, ...]:
    return tuple(jax.tree.map(lambda x, n=n: x[n], tree) for n in range(count))
