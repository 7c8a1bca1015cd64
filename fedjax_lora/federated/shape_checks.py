"""Whether what a method, a client or an update returns has the shapes a round goes on with.

Shapes are known while a round is traced, so every check happens on the host, before anything is
compiled, and says in which paths an author's own code went wrong.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lora.core.tree_structure import check_same_structure
from fedjax_lora.federated.state import FederatedState
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
    outcome: AggregateResult, state: FederatedState, own: Any, cohort: Cohort
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
        "What the method aggregates", outcome, AggregateResult(state.server, own, cohort.rank)
    )


def check_method(method: Method, spec: LoraSpec, state: FederatedState, cohort: int) -> None:
    """Try a method on shapes alone: nothing is computed or compiled.

    Args:
      method: the method.
      spec: where the adapters are.
      state: of the run.
      cohort: clients in a round.

    Raises:
      InputError: it does not return what a round can go on with.
    """

    def round_of(state: FederatedState, cohort: Cohort) -> AggregateResult:
        own = jax.tree.map(lambda x: x.at[cohort.id].get(mode="clip"), state.clients.method)
        start = method.broadcast(state.server, own, cohort)
        check_start(start, spec, cohort.id.shape[0])
        outcome = method.aggregate(state.server, own, cohort, start, start.adapter)
        check_outcome(outcome, state, own, cohort)
        return outcome

    def some() -> Cohort:
        whole, number = jnp.zeros(cohort, jnp.int32), jnp.ones(cohort, jnp.float32)
        return Cohort(whole, whole, number, number, jnp.zeros((), jnp.int32), jax.random.key(0))

    jax.eval_shape(round_of, state, jax.eval_shape(some))
