"""One federated round as one compiled function, built from a method and a local training."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Array, Key, Params, PyTree
from fedjax_lora.federated import transforms
from fedjax_lora.federated.attacks import Attack
from fedjax_lora.federated.client_update import (
    ClientParts,
    ClientUpdateFn,
    make_client_update,
)
from fedjax_lora.federated.execution import DEFAULT_EXECUTION, Execution
from fedjax_lora.federated.server_update import ServerUpdate
from fedjax_lora.federated.shape_checks import check_alike, check_plan
from fedjax_lora.federated.sharding import everywhere
from fedjax_lora.federated.staleness import (
    Staleness,
    check_method,
)
from fedjax_lora.federated.state import (
    FederatedState,
    Head,
    LoopState,
    Plan,
    RoundInput,
    RoundMetrics,
)
from fedjax_lora.federated.together import TogetherFn, joined, make_together, shifted
from fedjax_lora.federated.training import Training
from fedjax_lora.methods.base import (
    Method,
)

RoundFn = Callable[[Params, PyTree, FederatedState, Plan, Key], tuple[FederatedState, RoundMetrics]]
"""``(base, data, state, plan, key) -> (state, metrics)``, where ``key`` is the run's root key."""

Measure = Callable[..., dict[str, Any]]
"""``(base, head, before, cohort, start, result, after)`` to JSON values."""


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledRound:
    """A compiled round over data on the device; called as a `RoundFn`.

    Each call first checks on the host that the plan's clients and ranks go with the method.
    """

    method: Method
    compiled: (
        RoundFn | jax.stages.Wrapped
    )  # a `RoundFn`, jitted unless its mode is ``loop`` or ``remote`` or it is measured
    several: TogetherFn | jax.stages.Wrapped | None = None  # only in mode ``vmap``, unmeasured

    def __call__(
        self, base: Params, data: PyTree, state: FederatedState, plan: Plan, key: Key
    ) -> tuple[FederatedState, RoundMetrics]:
        """Run the round.

        Args:
          base: the base parameters; where ``state.head`` has a parameter too, its value is used.
          data: a pytree of all training examples, leaves ``[E, ...]``.
          state: of the round before; donated unless the round is measured.
          plan: this round's clients, and which rows of the data they train on.
          key: the run's root key, the same in every round; rounds and clients fold in their
            numbers.

        Raises:
          InputError: ranks that the method does not take, clients that do not exist.
        """
        check_plan(self.method, state, plan)
        return self.compiled(base, data, state, plan, key)

    def together(
        self,
        base: Params,
        data: PyTree,
        states: Sequence[FederatedState],
        plans: Sequence[Plan],
        keys: Sequence[Key],
    ) -> tuple[tuple[FederatedState, ...], tuple[RoundMetrics, ...]]:
        """Run the round of several federations in one program.

        They may differ in everything that is data: seeds, clients, ranks, batches, learning rates.
        The clients at the same place of their cohorts are trained at once, so that small steps fill
        the device; the results are those of single rounds, but for the order of sums. Another
        number of federations is compiled anew.

        Args:
          base: the base parameters, the same for all.
          data: as for a single round; the rows that all plans name are in it.
          states: state of each federation; donated.
          plans: their plans, of equal shapes.
          keys: their root keys.

        Returns:
          The states after the round, and the metrics of each federation.

        Raises:
          InputError: a round that is measured, or not in mode ``vmap``; plans of different shapes;
            ranks that the method does not take, clients that do not exist.
        """
        if self.several is None:
            raise InputError(
                "Only rounds in mode 'vmap' that are not measured can be run together; run the "
                "federations one after another."
            )
        check_alike(states, plans, keys)
        for state, plan in zip(states, plans, strict=True):
            check_plan(self.method, state, plan)
        return self.several(base, data, tuple(states), tuple(plans), tuple(keys))

    def lower(self, *args: PyTree) -> jax.stages.Lowered:
        """Lower the compiled function for these arguments, see `jax.stages`."""
        return self.compiled.lower(*args)


@dataclasses.dataclass(frozen=True, eq=False)
class Round:
    """A compiled round for a loop of your own, see `make_round`."""

    compiled: CompiledRound

    def __call__(
        self, params: Params, state: FederatedState, cohort: RoundInput
    ) -> tuple[FederatedState, RoundMetrics]:
        """Run the round.

        Args:
          params: the parameters that the state was initialised with.
          state: from `fedjax_lora.federated.init`, or of the round before; it is donated, that is,
            its memory is used for the new state.
          cohort: from `fedjax_lora.federated.cohort`.

        Returns:
          The new state, and what the round reports.

        Raises:
          InputError: ranks that the method does not take, clients that do not exist, or a state
            that is not from `fedjax_lora.federated.init`.
        """
        loop, plan = _loop_of(state), cohort.plan
        check_plan(self.compiled.method, state, plan)
        left = plan._replace(rank=_ranks_left(plan.rank, plan.id, loop.most))
        new, metrics = self.compiled.compiled(
            params, cohort.data, state._replace(loop=()), left, loop.key
        )
        return _with_loop(loop, left, new, metrics), metrics

    def together(
        self, params: Params, states: Sequence[FederatedState], cohorts: Sequence[RoundInput]
    ) -> tuple[list[FederatedState], list[RoundMetrics]]:
        """Run the round of several federations in one program, for example of several seeds.

        See `CompiledRound.together` for what they may differ in.

        Args:
          params: the parameters that the states were initialised with.
          states: state of each federation; donated.
          cohorts: their inputs, of equal shapes. Where the data are large, give all the same object
            and row numbers: other data are joined in every round.

        Returns:
          The states after the round, and the metrics of each federation.

        Raises:
          InputError: as `CompiledRound.together`.
        """
        loops = [_loop_of(state) for state in states]
        data, offsets = joined([cohort.data for cohort in cohorts])
        plans = [
            shifted(plan._replace(rank=_ranks_left(plan.rank, plan.id, loop.most)), offset)
            for loop, (plan, _), offset in zip(loops, cohorts, offsets, strict=True)
        ]
        new, metrics = self.compiled.together(
            params,
            data,
            [state._replace(loop=()) for state in states],
            plans,
            [loop.key for loop in loops],
        )
        after = map(_with_loop, loops, plans, new, metrics)
        return list(after), list(metrics)


def _loop_of(state: FederatedState) -> LoopState:
    """The values that a loop of your own carries.

    Raises:
      InputError: the state is not from `fedjax_lora.federated.init`.
    """
    if not isinstance(state.loop, LoopState):
        raise InputError("The state has no key; begin a loop of your own with federated.init.")
    return state.loop


def _with_loop(
    loop: LoopState, plan: Plan, new: FederatedState, metrics: RoundMetrics
) -> FederatedState:
    """The state after a round with the values that a loop of your own carries."""
    most = _lowered(loop.most, plan.id, plan.rank, metrics.rank)
    return new._replace(loop=loop._replace(most=most))


@jax.jit
def _ranks_left(rank: Array, ids: Array, most: Array) -> Array:
    """The ranks without what a method has taken away in earlier rounds: ``int32[c]``."""
    return jnp.minimum(rank, most.at[ids].get(mode="clip"))


@jax.jit
def _lowered(most: Array, ids: Array, before: Array, after: Array) -> Array:
    """The highest ranks left to all clients, after a round that has lowered some: ``int32[N]``."""
    lowered = jnp.where(after < before, after, jnp.iinfo(jnp.int32).max)
    return most.at[ids].min(lowered, mode="drop")


@checked_options
def make_round(
    method: Method,
    train: Training,
    *,
    heads: Head = "average",
    execution: Execution = DEFAULT_EXECUTION,
    updates: Sequence[transforms.UpdateTransform] = (),
    server_optimizer: transforms.ServerOptimizer | None = None,
    attacks: Sequence[Attack] = (),
    staleness: Staleness | None = None,
) -> Round:
    """Compile a round of a method, all of its hooks included.

    Args:
      method: the federated method.
      train: local training, see `fedjax_lora.federated.local_training`; what the method adds to it
        (a penalty, learning rates, a projection) is added here.
      heads: what happens to fully trained parameters; as given to `fedjax_lora.federated.init`.
      execution: how the cohort is executed.
      updates: transforms of what clients send, see `fedjax_lora.federated.transforms`; heads that
        are not averaged are not sent.
      server_optimizer: follows the change that the method makes; as given to ``init``.
      attacks: what attackers send, see `fedjax_lora.federated.attacks`; who they are is said by
        ``attackers`` of `fedjax_lora.federated.cohort`.
      staleness: how late clients are mixed, see `fedjax_lora.federated.staleness`; as given to
        ``init``. How late each is, is said by ``staleness`` of `fedjax_lora.federated.cohort`.

    Returns:
      ``step(params, state, cohort) -> (state, metrics)``.

    Raises:
      InputError: a server optimizer with a method that does not average; on the first call, if the
        method, the training or an update returns shapes that the round cannot go on with.
    """
    return Round(
        compile_round(
            method,
            train,
            heads=heads,
            execution=execution,
            updates=updates,
            server_optimizer=server_optimizer,
            attacks=attacks,
            staleness=staleness,
        )
    )


@checked_options
def compile_round(
    method: Method,
    train: Training,
    *,
    heads: Head = "average",
    execution: Execution = DEFAULT_EXECUTION,
    updates: Sequence[transforms.UpdateTransform] = (),
    server_optimizer: transforms.ServerOptimizer | None = None,
    attacks: Sequence[Attack] = (),
    staleness: Staleness | None = None,
    measure: Measure | None = None,
) -> CompiledRound:
    """Compile a round as a function of base, data, state, plan and key.

    The arguments are those of `make_round`, and:

    Args:
      method: the federated method.
      train: local training.
      heads: what happens to the task head.
      execution: how the cohort is executed.
      updates: transforms of what clients send.
      server_optimizer: follows the change that the method makes.
      attacks: what the plan's attackers do, one for each row of ``Plan.attackers``.
      staleness: how late clients are mixed; rounds with it need a ``Plan.staleness``.
      measure: called on the host after every round (see `fedjax_lora.federated.diagnostics`). The
        round is then compiled in parts, so that what is between them can be seen and timed, and
        keeps its input.
    """
    if server_optimizer is not None:
        transforms.check_method_averages(method)
    if staleness is not None:
        _check_late(method, staleness, execution, measure)
    if any(update.central for update in updates) and (staleness or execution.mode == "remote"):
        raise InputError(
            "Update 'central_noise' goes neither with late clients nor with real machines (mode "
            "'remote') yet; take 'gaussian_noise'."
        )
    client_update = make_client_update(method, train, heads=heads, execution=execution)
    if execution.mode == "remote":  # the clients have applied theirs, and the wire is a real one
        updates = [update for update in updates if update.stage == "server"]
    server = ServerUpdate(
        method, heads, execution.mesh, tuple(updates), server_optimizer, tuple(attacks), staleness
    )
    placed: dict[str, Any] = {}
    if execution.mode == "sharded":
        placed["out_shardings"] = everywhere(execution.mesh)
    if measure is not None:
        measured = _measured(client_update, server, measure, execution, placed)
        return CompiledRound(method, _reported(measured, execution))
    if execution.mode == "remote":
        composed = _composed(client_update, jax.jit(server.finish))
        return CompiledRound(method, _reported(composed, execution))
    if execution.mode == "loop":
        return CompiledRound(method, _composed(client_update, jax.jit(server.finish)))
    fused = jax.jit(_composed(client_update, server.finish), donate_argnums=2, **placed)
    if execution.mode == "sharded":
        return CompiledRound(method, fused)
    parts = ClientParts(method, heads)
    together = make_together(parts, train.bind(method), server.finish, execution)
    return CompiledRound(method, fused, jax.jit(together, donate_argnums=2))


def _check_late(
    method: Method, staleness: Staleness, execution: Execution, measure: Measure | None
) -> None:
    """Refuse what late clients do not go with.

    Raises:
      InputError: the method, measuring, or clients that are other machines.
    """
    check_method(method, staleness)
    if measure is not None or execution.mode == "remote":
        raise InputError(
            "Rounds with late clients are neither measured nor of real machines (mode 'remote'); "
            "leave out --measure, or take server 'synchronous'."
        )


def _composed(client_update: ClientUpdateFn, finish: Callable[..., Any]) -> RoundFn:
    """Both halves of a round, one after the other."""

    def round_fn(
        base: Params, data: PyTree, state: FederatedState, plan: Plan, key: Key
    ) -> tuple[FederatedState, RoundMetrics]:
        return finish(state, plan, key, client_update(base, data, state, plan, key))

    return round_fn


def _reported(round_fn: RoundFn, execution: Execution) -> RoundFn:
    """The round, after which whoever has the clients trained is told its outcome."""
    if execution.report is None:
        return round_fn

    def reported_fn(
        base: Params, data: PyTree, state: FederatedState, plan: Plan, key: Key
    ) -> tuple[FederatedState, RoundMetrics]:
        after, metrics = round_fn(base, data, state, plan, key)
        assert execution.report is not None
        execution.report(plan, metrics)
        return after, metrics

    return reported_fn


def _measured(
    client_update: ClientUpdateFn,
    server: ServerUpdate,
    measure: Measure,
    execution: Execution,
    placed: dict[str, Any],
) -> RoundFn:
    """A round that is compiled in parts, timed and measured."""
    finish, received = jax.jit(server.finish, **placed), jax.jit(server.received)
    if execution.mode not in ("loop", "remote"):
        client_update = jax.jit(client_update)

    def measured_fn(
        base: Params, data: PyTree, state: FederatedState, plan: Plan, key: Key
    ) -> tuple[FederatedState, RoundMetrics]:
        update = jax.block_until_ready(client_update(base, data, state, plan, key))
        times = [time.perf_counter()]
        after, metrics = jax.block_until_ready(finish(state, plan, key, update))
        times.append(time.perf_counter())
        trained, cohort = received(plan, key, update)
        values = measure(
            base, state.head, state.server, cohort, update.init, trained.adapter, after.server
        )
        times.append(time.perf_counter())
        # The first round's are longer by the time it takes to compile.
        names = ("server_seconds", "measure_seconds")
        seconds = {name: times[n + 1] - times[n] for n, name in enumerate(names)}
        return after, metrics._replace(measured=values, seconds=seconds)

    return measured_fn
