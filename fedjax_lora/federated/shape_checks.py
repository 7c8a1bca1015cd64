"""Checks of what a method returns, and of the plan that a round is given.

Shapes are known while a round is traced, so every check happens on the host, before anything is
compiled, and names the paths in which an author's own code went wrong.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.tree_structure import check_same_structure
from fedjax_lora.core.types import PyTree
from fedjax_lora.federated.state import FederatedState, Plan
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.base import AggregateResult, ClientInit, Cohort, Method


def check_start(start: ClientInit, spec: LoraSpec, count: int) -> None:
    """Refuse a broadcast whose factors or gains are not those of so many clients.

    Raises:
      InputError: with all paths in which it differs.
    """
    struct = lambda *shape: jax.ShapeDtypeStruct((count, *shape), jnp.float32)  # noqa: E731
    adapter = jax.tree.map(lambda x: struct(*x.shape), spec.shapes())
    gain = {target.path: struct(*target.stack, spec.rank) for target in spec.targets}
    got = {"adapter": start.adapter, "gain": start.gain}
    check_same_structure("What the method broadcasts", got, {"adapter": adapter, "gain": gain})


def check_outcome(
    outcome: AggregateResult, state: FederatedState, own: PyTree, cohort: Cohort
) -> None:
    """Refuse an aggregation after which the next round could not go on.

    Args:
      outcome: of the aggregation.
      state: before it.
      own: the method's state of the cohort's clients, before it.
      cohort: this round's clients.

    Raises:
      InputError: with all paths in which it differs.
    """
    check_same_structure(
        "What the method aggregates",
        outcome._replace(owned=(), added=()),
        AggregateResult(state.server, own, cohort.rank),
    )
    if not outcome.owned:
        return
    try:
        jax.tree.map(
            lambda x, mask: jnp.broadcast_to(mask, x.shape), state.server.adapter, outcome.owned
        )
    except (TypeError, ValueError) as error:
        raise InputError(
            "The method's AggregateResult.owned does not broadcast against the global adapter; "
            "make it with lora.factor_mask, or leave it out."
        ) from error


def check_method(method: Method, state: FederatedState, cohort: int) -> None:
    """Try a method on shapes alone: nothing is computed or compiled.

    Args:
      method: the method.
      state: of the run.
      cohort: clients in a round.

    Raises:
      InputError: it does not return what a round can go on with.
    """

    def round_of(state: FederatedState, cohort: Cohort) -> AggregateResult:
        own = jax.tree.map(lambda x: x.at[cohort.id].get(mode="clip"), state.clients.method)
        start = method.broadcast(state.server, own, cohort)
        check_start(start, method.spec, cohort.id.shape[0])
        outcome = method.aggregate(state.server, own, cohort, start, start.adapter)
        check_outcome(outcome, state, own, cohort)
        return outcome

    def some() -> Cohort:
        whole, number = jnp.zeros(cohort, jnp.int32), jnp.ones(cohort, jnp.float32)
        return Cohort(whole, whole, number, number, jnp.zeros((), jnp.int32), jax.random.key(0))

    jax.eval_shape(round_of, state, jax.eval_shape(some))


def check_plan(method: Method, state: FederatedState, plan: Plan) -> None:
    """Refuse a plan whose clients or ranks do not go with the method; nothing if it is traced.

    Absent clients (weight 0) may have any number and rank.

    Raises:
      InputError: ranks outside 1..R or that the method does not take, a client beyond the last.
    """
    if any(isinstance(x, Tracer) for x in (plan.id, plan.rank, plan.weight)):
        return
    present = np.asarray(plan.weight) > 0
    rank, ids = np.asarray(plan.rank)[present], np.asarray(plan.id)[present]
    most = method.spec.rank
    if bad := sorted({int(r) for r in rank if not 1 <= r <= most}):
        raise InputError(
            f"Ranks {bad} do not fit an adapter of rank {most}; give each client a rank from 1 to "
            f"{most}, or make the spec with a higher rank."
        )
    method.check(rank)
    for leaf in jax.tree.leaves(state.clients)[:1]:
        if beyond := [int(i) for i in ids if not 0 <= i < leaf.shape[0]]:
            raise InputError(
                f"Clients {beyond} do not exist, the state holds clients 0..{leaf.shape[0] - 1}; "
                "choose ids below num_clients."
            )


def check_alike(
    states: Sequence[FederatedState], plans: Sequence[Plan], keys: Sequence[PyTree]
) -> None:
    """Refuse federations whose rounds cannot be one program.

    Raises:
      InputError: none or not equally many states, plans and keys; different shapes.
    """
    counts = (len(states), len(plans), len(keys))
    if len(set(counts)) > 1 or not states:
        raise InputError(
            f"Rounds that run together take one state, plan and key of each federation, got "
            f"{counts[0]}, {counts[1]} and {counts[2]}."
        )
    for number, one in enumerate(zip(states, plans, strict=True)):
        what = f"Federation {number} of those that run together"
        check_same_structure(what, one, (states[0], plans[0]))
