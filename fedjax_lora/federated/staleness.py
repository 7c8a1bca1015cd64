"""Late clients: what a round makes of answers to the model of an earlier round.

A round keeps the models of the last rounds. A client of staleness `t` has begun with the model of
`t` rounds ago; its message is trained from there, and mixed into the present model in one of two
ways, discounted by ``s(t) = rate * (1 + t)^-exponent``:

* ``changes``: ``x + s(t) * (x_k - start_k)``, the client's change added to what it would be sent
  now. This needs factors that mean the same in both rounds, as those of averages do. Factors of a
  decomposition do not: signs, order and basis are new after every round.
* ``models``: ``(1 - s(t)) * x + s(t) * x_k``, the mean of the present model and the client's. The
  server takes part as one more client, of the highest rank and the weight that the clients lack. So
  this goes with products too, which are models whatever basis their factors have. It does not go
  with rules that treat the highest rank otherwise (`zero_padding`, `replication`) or choose what
  each client trains (`fed_plora`), nor with equal weights, which would not see the discount.

With staleness 0 and rate 1 both are the round as it always is. Methods that add their clients'
products to the base (`flora`) would have to keep the bases of earlier rounds, and methods whose
clients take turns (`rolora`) the turn; `fedjax_lora.methods.Method.late` says what a method takes.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import check_fields
from fedjax_lora.core.types import AnyArray, Array, ClientParams, Key, Params, PyTree
from fedjax_lora.federated.round_keys import METHOD, round_key
from fedjax_lora.methods.base import ClientInit, Cohort, Method, Mix, ServerState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Staleness:
    """How late clients are mixed into the present model.

    >>> Staleness().discount(jnp.array([0, 3])).tolist()
    [1.0, 0.5]

    Attributes:
      mix: ``changes`` or ``models``, see above.
      exponent: of the discount ``(1 + staleness)^-exponent``; 0 for none.
      rate: factor of the discount, at most 1.
      most: highest staleness of a client, so that ``most + 1`` models are kept.

    Raises:
      InputError: values out of range.
    """

    mix: Mix = "changes"
    exponent: float = 0.5
    rate: float = 1.0
    most: int = 16

    def __post_init__(self) -> None:
        check_fields(self)
        if not (0 <= self.exponent < math.inf and 0 < self.rate <= 1 and 0 <= self.most <= 1000):
            raise InputError(
                "Staleness needs an exponent of at least 0, a rate above 0 and at most 1, and most "
                f"from 0 to 1000, got {self.exponent}, {self.rate} and {self.most}."
            )

    def discount(self, staleness: AnyArray) -> Array:
        """Return the factor of each client, ``float32[c]``."""
        return self.rate * (1.0 + jnp.asarray(staleness, jnp.float32)) ** -self.exponent


class Past(NamedTuple):
    """The models of the last `S` rounds; leaves ``[S, ...]``, that of round `t` at ``t mod S``."""

    server: ServerState
    head: Params


class Arrivals(NamedTuple):
    """What a method aggregates."""

    own: PyTree  # the method's state of each client
    start: ClientInit
    trained: ClientParams
    cohort: Cohort


def check_method(method: Method, staleness: Staleness) -> None:
    """Refuse a method for which such late clients have no meaning.

    Raises:
      InputError: in one sentence, with what it would take.
    """
    if staleness.mix in method.late:
        return
    if method.late:
        raise InputError(
            f"Method {method.name!r} cannot mix late {staleness.mix}, only {method.late[0]} (see "
            f"fedjax_lora.federated.staleness); take mix={method.late[0]!r}."
        )
    raise InputError(
        f"Method {method.name!r} takes no late clients: what they send belongs to the round in "
        "which they began (its base, its turn or its basis) or is not weighed by examples; take "
        "server 'synchronous', or a method such as 'masked_mean' or 'hlora'."
    )


def begin(server: ServerState, head: Params, staleness: Staleness) -> Past:
    """Return the past before the first round: the initial model in all places."""
    count = staleness.most + 1
    return jax.tree.map(
        lambda x: jnp.broadcast_to(jnp.asarray(x)[None], (count, *jnp.shape(x))),
        Past(server, head),
    )


def recall(past: Past, rounds: Array) -> Past:
    """Return the models of some rounds, leaves ``[c, ...]``."""
    return jax.tree.map(lambda x: x[rounds % x.shape[0]], past)


def remember(past: Past, round: Array, server: ServerState, head: Params) -> Past:
    """Keep the model with which a round begins, in place of the oldest."""
    return jax.tree.map(
        lambda kept, x: kept.at[round % kept.shape[0]].set(x), past, Past(server, head)
    )


def broadcast_each(method: Method, server: ServerState, own: PyTree, cohort: Cohort) -> ClientInit:
    """What each client would get of a server and in a round of its own.

    Args:
      method: the method.
      server: leaves ``[c, ...]``.
      own: the method's state of each client.
      cohort: the clients, with a round and a key each.
    """

    def one(server: ServerState, own: PyTree, cohort: Cohort) -> ClientInit:
        alone = jax.tree.map(lambda x: x[None], (own, cohort))
        shared = alone[1]._replace(round=cohort.round, key=cohort.key)
        return method.broadcast(server, alone[0], shared)

    return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(server, own, cohort))


def caught_up(
    staleness: Staleness,
    method: Method,
    present: Past,
    given: Arrivals,
    begun: Cohort,
    before: ClientParams,
    trainable: ClientParams,
    late: Array,
) -> Arrivals:
    """What the method aggregates in place of what has arrived.

    Args:
      staleness: how late clients are mixed.
      method: the method.
      present: the model before the round, without a leading axis.
      given: what has arrived.
      begun: the clients, with the round and the key with which each began.
      before: the parameters with which the clients began, ``[c, ...]``.
      trainable: booleans that broadcast against them.
      late: the clients' staleness, ``int32[c]``.
    """
    if staleness.mix == "models":
        return _with_server(method, present, given, staleness.discount(late))
    count = late.shape[0]
    again = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (count, *x.shape)), present)
    now = broadcast_each(method, again.server, given.own, begun)
    factor = staleness.discount(late)
    exact = (late == 0) & (factor == 1)  # then bit for bit what the client has sent

    def moved(n: Array, x0: Array, x: Array, m: Array) -> Array:
        sum_ = n + trees.expand(factor, x) * (x - x0)
        return jnp.where(m, jnp.where(trees.expand(exact, x), x, sum_), n)

    trained = jax.tree.map(
        moved, ClientParams(now.adapter, again.head), before, given.trained, trainable
    )
    start = now._replace(trainable=given.start.trainable)
    return given._replace(start=start, trained=trained)


def _with_server(method: Method, present: Past, given: Arrivals, factor: Array) -> Arrivals:
    """The clients and, as one more of them, the server with the model before the round."""
    cohort = given.cohort
    weight = cohort.weight * factor
    lacking = jnp.sum(cohort.weight - weight)
    rank = jnp.full(1, method.spec.rank, cohort.rank.dtype)
    scale = jnp.full(1, method.spec.server_scale, cohort.scale.dtype)
    join = lambda x, y: jnp.concatenate([x, y])  # noqa: E731
    everyone = cohort._replace(
        id=join(cohort.id, cohort.id[:1]),
        rank=join(cohort.rank, rank),
        scale=join(cohort.scale, scale),
        weight=join(weight, lacking[None]),
    )
    own = jax.tree.map(lambda x: join(x, x[:1]), given.own)
    start = method.broadcast(present.server, own, everyone)
    last = ClientParams(
        jax.tree.map(lambda x: x[-1:], start.adapter), jax.tree.map(lambda x: x[None], present.head)
    )
    trained = jax.tree.map(join, given.trained._replace(coefficients=()), last)
    return Arrivals(own, start, trained, everyone)


def begun_in(cohort: Cohort, rounds: Array, key: Key) -> Cohort:
    """The cohort with the round in which each client began, and that round's key.

    Args:
      cohort: of the present round.
      rounds: ``int32[c]``.
      key: the run's root key.
    """
    keys = jax.vmap(lambda round: round_key(key, round, METHOD))(rounds)
    return cohort._replace(round=rounds, key=keys)
