"""Client scoring: evaluates each client's trained model on the server's validation examples.

``result = score_fn(base, data, validation, state, plan, key)`` trains a cohort exactly as a round
with this plan would and evaluates every client's model, without aggregation. It works in all modes
of `fedjax_lora.federated.execution` and compiles once.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core.types import Array, Kernels, Key, Params, PyTree
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
)
from fedjax_lora.methods import ServerState


class ValidationResult(NamedTuple):
    """Validation loss and accuracy of each client of a cohort."""

    loss: Array  # float32[c], mean over the predictions; not finite for a model that diverged
    accuracy: Array  # float32[c], share of predictions whose highest logit is right


class LengthBucket(NamedTuple):
    """Batches of the validation examples that fit into one length bucket."""

    size: int  # tokens
    index: np.ndarray  # int32[s, n], rows of the validation set
    valid: np.ndarray  # bool[s, n], false where a batch is not full


ScoreFn = Callable[[Params, Any, Any, FederatedState, Plan, Key], ValidationResult]


def bucket_by_length(
    length: np.ndarray, buckets: Sequence[int], *, batch: int
) -> list[LengthBucket]:
    """Assign every example to the first length bucket that it fits into, and cut batches.

    Padding rows of a batch are computed too, so the batches of a bucket are as small as their
    number allows.

    >>> buckets = bucket_by_length(np.array([3, 9, 2, 4]), (4, 9), batch=2)
    >>> [(bucket.size, bucket.index.tolist()) for bucket in buckets]
    [(4, [[0, 2], [3, 3]]), (9, [[1]])]

    Args:
      length: ``int[E]``, tokens of each example.
      buckets: lengths in tokens, ascending.
      batch: largest number of examples in a batch.
    """
    bucket = np.searchsorted(np.asarray(buckets), length)
    filled_buckets = []
    for number, size in enumerate(buckets):
        examples = np.flatnonzero(bucket == number).astype(np.int32)
        if len(examples):
            steps = -(-len(examples) // batch)
            rows = -(-len(examples) // steps)
            index = np.pad(examples, (0, steps * rows - len(examples)), mode="edge")
            valid = np.arange(steps * rows) < len(examples)
            filled_buckets.append(
                LengthBucket(size, index.reshape(steps, rows), valid.reshape(steps, rows))
            )
    return filled_buckets


def make_validate_fn(
    objective: Objective, buckets: Sequence[LengthBucket]
) -> Callable[[Params, PyTree, Clients, Array], ValidationResult]:
    """Make the function that evaluates a step group of clients on the validation examples.

    Args:
      objective: the task.
      buckets: the validation examples, see `bucket_by_length`.

    Returns:
      ``validate(base, data, clients, rate) -> ValidationResult [w]`` of the clients' parameters,
      without dropout. The signature is that of local training; the learning rate is not used.
    """

    def validate(base: Params, data: Any, clients: Clients, rate: Array) -> ValidationResult:
        def batch_sums(size: int, index: Array, valid: Array) -> Score:
            batch = objective.take(data, index, size)

            def one(client: Clients) -> Score:
                factors = lora.fold(client.params.adapter, client.params.coefficients)
                own = client.params._replace(adapter=factors)
                output = objective.outputs(base, own, client.gain, batch)
                score = objective.score(output, batch)
                return Score(*(jnp.sum(jnp.where(valid, x, 0)) for x in score))

            return jax.vmap(one)(clients)

        count = clients.rank.shape[0]
        sums = Score(*(jnp.zeros(count) for _ in Score._fields))
        for bucket in buckets:

            def step(carry: Score, batch: tuple, size: int = bucket.size) -> tuple[Score, None]:
                return jax.tree.map(jnp.add, carry, batch_sums(size, *batch)), None

            batches = (jnp.asarray(bucket.index), jnp.asarray(bucket.valid))
            sums, _ = jax.lax.scan(step, sums, batches)
        return ValidationResult(sums.loss / sums.count, sums.hits / sums.count)

    return validate


def make_score_fn(
    client_update: ClientUpdateFn,
    validate: Callable[[Params, PyTree, Clients, Array], ValidationResult],
    execution: Execution,
    *,
    kernels: Callable[[ServerState], Kernels] = operator.attrgetter("kernels"),
) -> ScoreFn:
    """Compile the scoring of a cohort.

    Args:
      client_update: local training, see `fedjax_lora.federated.make_client_update`.
      validate: see `make_validate_fn`.
      execution: how clients are executed, the same as for ``client_update``.
      kernels: the base kernels that clients have, by default those of the server, see
        `fedjax_lora.methods.client_kernels`.

    Returns:
      ``score_fn(base, data, validation, state, plan, key) -> ValidationResult``; ``state`` is not
      donated.
    """
    validate_cohort = execute(validate, execution)

    def score_fn(
        base: Params, data: Any, validation: Any, state: FederatedState, plan: Plan, key: Key
    ) -> ValidationResult:
        local = client_update(base, data, state, plan, key)
        full = lora.with_kernels(base, kernels(state.server))
        trained = local.clients._replace(params=local.trained)
        result = validate_cohort(full, validation, trained, jnp.asarray(plan.rate))
        finite = all_finite(local.trained)
        return result._replace(loss=jnp.where(finite, result.loss, jnp.inf))

    if execution.mode == "loop":
        return score_fn
    if execution.mode == "sharded":
        return jax.jit(score_fn, out_shardings=everywhere(execution.mesh))
    return jax.jit(score_fn)
