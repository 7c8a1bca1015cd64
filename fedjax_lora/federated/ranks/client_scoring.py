"""How good each client's own model is on the server's validation examples, as compiled functions.

``seen = score_fn(base, data, validation, state, plan, key)`` trains a cohort exactly as a round
with this plan would and evaluates every client's model; nothing is aggregated. It works in all
modes of `fedjax_lora.federated.execution` and compiles once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.types import Array, Key, Params
from fedjax_lora.federated import (
    Clients,
    ClientUpdateFn,
    Execution,
    FederatedState,
    Objective,
    Plan,
    Score,
    all_finite,
    everywhere,
    execute,
    with_kernels,
)


class ValidationResult(NamedTuple):
    """What validation finds, per client of the cohort."""

    loss: Array  # float32[c], mean over what is predicted; not finite for a broken model
    accuracy: Array  # float32[c], share of predictions whose highest logit is right


class Rows(NamedTuple):
    """The validation examples that fit into one of the length buckets, in batches."""

    size: int  # tokens
    index: np.ndarray  # int32[s, n]
    valid: np.ndarray  # bool[s, n]


ScoreFn = Callable[[Params, Any, Any, FederatedState, Plan, Key], ValidationResult]


def bucket_by_length(length: np.ndarray, buckets: Sequence[int], *, batch: int) -> list[Rows]:
    """Every example once, each in the first of the ascending buckets it fits into.

    The batches of a bucket are as small as their number allows: all that is in them is computed.

    >>> rows = bucket_by_length(np.array([3, 9, 2, 4]), (4, 9), batch=2)
    >>> [(part.size, part.index.tolist()) for part in rows]
    [(4, [[0, 2], [3, 3]]), (9, [[1]])]
    """
    fits = np.searchsorted(np.asarray(buckets), length)
    made = []
    for n, size in enumerate(buckets):
        own = np.flatnonzero(fits == n).astype(np.int32)
        if len(own):
            steps = -(-len(own) // batch)
            each = -(-len(own) // steps)
            filled = np.pad(own, (0, steps * each - len(own)), mode="edge")
            valid = np.arange(steps * each) < len(own)
            made.append(Rows(size, filled.reshape(steps, each), valid.reshape(steps, each)))
    return made


def make_validate_fn(
    objective: Objective, rows: Sequence[Rows]
) -> Callable[[Params, Any, Clients, Array], ValidationResult]:
    """Evaluate a wave of clients on the validation examples, without dropout.

    Args:
      objective: the task.
      rows: which examples, see `bucket_by_length`.

    Returns:
      ``validate(base, data, clients, rate) -> ValidationResult [w]`` of the clients' parameters; as
      local training is called, and the learning rate is not used.
    """

    def validate(base: Params, data: Any, clients: Clients, rate: Array) -> ValidationResult:
        def batch_sums(size: int, index: Array, valid: Array) -> Score:
            batch = objective.take(data, index, size)

            def one(client: Clients) -> Score:
                gain = lora.times(client.gain, client.params.coefficients)
                output = objective.outputs(base, client.params, gain, batch)
                score = objective.score(output, batch)
                return Score(*(jnp.sum(jnp.where(valid, x, 0)) for x in score))

            return jax.vmap(one)(clients)

        count = clients.rank.shape[0]
        sums = Score(*(jnp.zeros(count) for _ in Score._fields))
        for part in rows:

            def step(carry: Score, batch: tuple, size: int = part.size) -> tuple[Score, None]:
                return jax.tree.map(jnp.add, carry, batch_sums(size, *batch)), None

            sums, _ = jax.lax.scan(step, sums, (jnp.asarray(part.index), jnp.asarray(part.valid)))
        return ValidationResult(sums.loss / sums.count, sums.hits / sums.count)

    return validate


def make_score_fn(
    client_update: ClientUpdateFn,
    validate: Callable[[Params, Any, Clients, Array], ValidationResult],
    execution: Execution,
) -> ScoreFn:
    """Compile the scoring of a cohort.

    Args:
      client_update: local training, see `fedjax_lora.federated.make_client_update`.
      validate: see `make_validate_fn`.
      execution: that of ``client_update``.

    Returns:
      ``score_fn(base, data, validation, state, plan, key) -> ValidationResult``; ``state`` is not
      donated.
    """
    validate_cohort = execute(validate, execution)

    def score_fn(
        base: Params, data: Any, validation: Any, state: FederatedState, plan: Plan, key: Key
    ) -> ValidationResult:
        local = client_update(base, data, state, plan, key)
        full = with_kernels(base, state.server.kernels)
        own = local.clients._replace(params=local.trained)
        seen = validate_cohort(full, validation, own, plan.rate)
        sound = all_finite(local.trained)
        return seen._replace(loss=jnp.where(sound, seen.loss, jnp.inf))

    if execution.mode == "loop":
        return score_fn
    if execution.mode == "sharded":
        return jax.jit(score_fn, out_shardings=everywhere(execution.mesh))
    return jax.jit(score_fn)
