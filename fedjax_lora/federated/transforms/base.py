"""The update transform: a pure function of a cohort's updates, and its properties for the host."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import check_fields
from fedjax_lora.core.types import ClientParams, Gain, Key, PyTree
from fedjax_lora.federated.transforms.inner_products import inner_products
from fedjax_lora.methods.base import FLOAT_BYTES

Tree = TypeVar("Tree")

Stage = Literal["client", "wire", "server"]
STAGES: tuple[Stage, ...] = ("client", "wire", "server")
"""Stages at which a transform is applied, in the order of a real round."""

TransformFn = Callable[
    [ClientParams, ClientParams, ClientParams, Array, Key], tuple[ClientParams, Array]
]
"""``(start, trained, trainable, weight, keys) -> (trained, weight)``, see `UpdateTransform`."""


Weigh = Callable[[Array, Array], Array]
"""``(inner: float32[c, c], weight: float32[c]) -> weight``, from inner products of updates, see
`fedjax_lora.federated.transforms.products`."""

Attacked = Callable[[ClientParams, Array], ClientParams]
"""``(trained, weight) -> trained``, with what attackers send."""


class Noise(NamedTuple):
    """Parameters of Gaussian noise, for the privacy accountant."""

    multiplier: float  # standard deviation of the noise, over the norm that updates are clipped to
    delta: float | None  # None: one over the number of clients
    budget: float | None = None  # largest epsilon that may be spent


def float32_bytes(numbers: np.ndarray, matrices: int) -> np.ndarray:
    """Uplink bytes of float32: four bytes per number."""
    return FLOAT_BYTES * numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateTransform:
    """A transform of the clients' updates, between local training and aggregation.

    Attributes:
      apply: ``(start, trained, trainable, weight: float32[c], keys: Key[c]) -> (trained, weight)``,
        traceable. All leaves are ``[c, ...]``; ``trainable`` holds booleans that broadcast against
        them. Entries that are not trainable must be returned bit for bit. A weight of 0 marks an
        absent client; to exclude a client, return weight 0 for it.
      stage: ``client``, ``wire`` or ``server``; only a server transform sees all clients.
      uplink_bytes: ``(numbers: int64[c], matrices) -> int64[c]``, bytes that each client sends for
        so many numbers in so many matrices.
      is_aggregate: whether every client's update becomes a statistic over the cohort; this needs a
        method that averages, which then returns the statistic.
      noise: parameters of the added noise, for the privacy accountant.
      central: deviation of noise that the server adds to the aggregate, for a client whose share of
        it is 1, see `fedjax_lora.federated.central_noise`; 0 for none.
      weigh: weights from the inner products of updates, before ``apply``.
      reweighs: whether its weights are more than the clients' own and 0, so that it needs a method
        that weighs by them.
      needs_owners: number of clients that must have trained a number so that the statistic can
        leave out any of their values; 0 if that does not matter.
    """

    apply: TransformFn
    stage: Stage
    uplink_bytes: Callable[[np.ndarray, int], np.ndarray] = float32_bytes
    is_aggregate: bool = False
    noise: Noise | None = None
    central: float = 0.0
    weigh: Weigh | None = None
    reweighs: bool = False
    needs_owners: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


def apply_transforms(
    updates: Sequence[UpdateTransform],
    start: ClientParams,
    trained: ClientParams,
    trainable: ClientParams,
    weight: Float[Array, " c"],
    ids: Int[Array, " c"],
    key: Key,
    *,
    gain: Gain | None = None,
    attacked: Attacked | None = None,
) -> tuple[ClientParams, Float[Array, " c"]]:
    """Apply update transforms in order.

    Args:
      updates: the transforms.
      start: parameters before local training, ``[c, ...]``.
      trained: parameters after it.
      trainable: booleans that broadcast against both.
      weight: 0 for absent clients, whose values may be arbitrary, NaN included.
      ids: client ids. Random draws depend on (key, transform, client id) and not on the position in
        the cohort, so that all execution modes draw the same numbers.
      key: of the round.
      gain: multiplier of each component, ``[c, (L,) R]`` by path, for transforms that compare
        products; 1 by default.
      attacked: puts what attackers send in place of what honest clients would, who alone do what is
        the clients' part.

    Returns:
      The transformed parameters ``[c, ...]`` and weights ``[c]``.
    """
    for n, update in enumerate(updates):
        if attacked is not None and update.stage != "client":
            trained, attacked = attacked(trained, weight), None
        if update.weigh is not None:
            every = gain or {p: jnp.ones(pair.b.shape[:-1]) for p, pair in start.adapter.items()}
            inner = inner_products(start, trained, trainable, every, weight)
            weight = jnp.where(weight > 0, update.weigh(inner, weight), 0.0)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, n), ids)
        trained, weight = update.apply(start, trained, trainable, weight, keys)
    return trained if attacked is None else attacked(trained, weight), weight


def changes(start: Tree, trained: Tree, trainable: PyTree) -> Tree:
    """Client updates ``trained - start``, exactly 0 in entries that are not trainable."""
    return jax.tree.map(lambda x0, x, m: jnp.where(m, x - x0, 0), start, trained, trainable)


def changed_by(start: Tree, trained: Tree, trainable: PyTree, change: Tree) -> Tree:
    """Return ``start + change`` in trainable entries, ``trained`` elsewhere."""
    return jax.tree.map(
        lambda x0, x, m, d: jnp.where(m, x0 + d, x), start, trained, trainable, change
    )


def norms(change: ClientParams) -> Float[Array, " c"]:
    """Norm of each client's update over all leaves: ``[c]``."""
    return jnp.sqrt(jax.vmap(trees.square_norm)(change))


def draw(sample: Callable[[Key, tuple[int, ...]], Array], key: Key, like: Tree) -> Tree:
    """Draw ``sample(key, shape)`` independently for every client and every leaf ``[c, ...]``.

    Args:
      sample: for example `jax.random.normal`.
      key: one per client, ``[c]``.
      like: a tree of the shapes to draw.
    """
    leaves, structure = jax.tree.flatten(like)

    def one(n: int, x: Array) -> Array:
        return jax.vmap(lambda k: sample(jax.random.fold_in(k, n), x.shape[1:]))(key)

    return structure.unflatten([one(n, x) for n, x in enumerate(leaves)])


def need_positive(subject: str, **options: float) -> None:
    """Refuse options that are not above 0 and finite."""
    for name, value in options.items():
        if not 0 < value < math.inf:
            raise InputError(f"{subject} needs {name} above 0 and finite, got {value}.")
