"""How good each client's own model is on the server's validation examples, as compiled functions.

``seen = score_fn(base, data, validation, state, plan, key)`` trains a cohort exactly as a round
with this plan would and evaluates every client's model; nothing is aggregated. It works in all
modes of `fedjax_lora.clients.cohort` and compiles once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_lora import adapters
from fedjax_lora.clients import Clients, Mode, Objective, everywhere, example_loss, execute
from fedjax_lora.rounds import FederatedState, LocalFn, Plan, all_finite, with_kernels
from fedjax_lora.types import Array, Key, Params


class Seen(NamedTuple):
    """What validation finds, per client of the cohort."""

    loss: Array  # float32[c], mean over the validation examples; not finite for a broken model
    accuracy: Array  # float32[c], share of examples whose highest logit is the label's


class Rows(NamedTuple):
    """The validation examples that fit into one of the length buckets, in batches."""

    size: int  # tokens
    index: np.ndarray  # int32[s, n]
    valid: np.ndarray  # bool[s, n]


ScoreFn = Callable[[Params, Any, Any, FederatedState, Plan, Key], Seen]


def rows_by_length(length: np.ndarray, buckets: Sequence[int], *, batch: int) -> list[Rows]:
    """Every example once, each in the first of the ascending buckets it fits into.

    >>> rows = rows_by_length(np.array([3, 9, 2, 4]), (4, 9), batch=2)
    >>> [(part.size, part.index.tolist()) for part in rows]
    [(4, [[0, 2], [3, 3]]), (9, [[1, 1]])]
    """
    fits = np.searchsorted(np.asarray(buckets), length)
    made = []
    for n, size in enumerate(buckets):
        own = np.flatnonzero(fits == n).astype(np.int32)
        if len(own):
            steps = -(-len(own) // batch)
            filled = np.pad(own, (0, steps * batch - len(own)), mode="edge")
            valid = np.arange(steps * batch) < len(own)
            made.append(Rows(size, filled.reshape(steps, batch), valid.reshape(steps, batch)))
    return made


def make_validation(
    objective: Objective, rows: Sequence[Rows], *, regression: bool = False
) -> Callable[[Params, Any, Clients, Array], Seen]:
    """Evaluate a wave of clients on the validation examples, without dropout.

    Args:
      objective: the task.
      rows: which examples, see `rows_by_length`.
      regression: labels are scores: the loss is the squared error and the accuracy is 0.

    Returns:
      ``validate(base, data, clients, rate) -> Seen [w]`` of the clients' parameters; as local
      training is called, and the learning rate is not used.
    """
    total = sum(int(part.valid.sum()) for part in rows)

    def validate(base: Params, data: Any, clients: Clients, rate: Array) -> Seen:
        def batch_sums(size: int, index: Array, valid: Array) -> Seen:
            batch = objective.take(data, index, size)

            def one(client: Clients) -> Seen:
                gain = adapters.times(client.gain, client.params.coefficients)
                output = objective.outputs(base, client.params, gain, batch)
                loss = example_loss(output, batch.label, regression=regression)
                hit = jnp.argmax(output, axis=1) == batch.label.astype(jnp.int32)
                return Seen(
                    jnp.sum(jnp.where(valid, loss, 0)),
                    jnp.sum((hit & valid & (not regression)).astype(jnp.float32)),
                )

            return jax.vmap(one)(clients)

        count = clients.rank.shape[0]
        sums = Seen(jnp.zeros(count), jnp.zeros(count))
        for part in rows:

            def step(carry: Seen, batch: tuple, size: int = part.size) -> tuple[Seen, None]:
                return jax.tree.map(jnp.add, carry, batch_sums(size, *batch)), None

            sums, _ = jax.lax.scan(step, sums, (jnp.asarray(part.index), jnp.asarray(part.valid)))
        return jax.tree.map(lambda x: x / total, sums)

    return validate


def make_score(
    locally: LocalFn,
    validate: Callable[[Params, Any, Clients, Array], Seen],
    *,
    mode: Mode = "vmap",
    wave: int = 1,
    mesh: Mesh | None = None,
) -> ScoreFn:
    """Compile the scoring of a cohort.

    Args:
      locally: local training, see `fedjax_lora.rounds.make_local`.
      validate: see `make_validation`.
      mode: that of ``locally``, as the following two.
      wave: clients evaluated at once on one device.
      mesh: needed by mode ``sharded``.

    Returns:
      ``score_fn(base, data, validation, state, plan, key) -> Seen``; ``state`` is not donated.
    """
    validate_cohort = execute(validate, mode=mode, wave=wave, mesh=mesh)

    def score_fn(
        base: Params, data: Any, validation: Any, state: FederatedState, plan: Plan, key: Key
    ) -> Seen:
        local = locally(base, data, state, plan, key)
        full = with_kernels(base, state.server.kernels)
        own = local.clients._replace(params=local.trained)
        seen = validate_cohort(full, validation, own, plan.rate)
        sound = all_finite(local.trained)
        return seen._replace(loss=jnp.where(sound, seen.loss, jnp.inf))

    if mode == "loop":
        return score_fn
    if mode == "sharded":
        return jax.jit(score_fn, out_shardings=everywhere(mesh))
    return jax.jit(score_fn)
