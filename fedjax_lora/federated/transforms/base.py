"""What an update is: a pure function on what a cohort sends, and what the host must know of it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import ClientParams, Key
from fedjax_lora.methods.base import FLOAT_BYTES

Tree = TypeVar("Tree")

Stage = Literal["client", "wire", "server"]
STAGES: tuple[Stage, ...] = ("client", "wire", "server")
"""Where an update happens, in the order of a real round."""


class Noise(NamedTuple):
    """What an accountant must know about Gaussian noise."""

    multiplier: float  # deviation of the noise over the norm that a client's update is clipped to
    delta: float | None  # None: one over the number of clients


def float32_bytes(numbers: np.ndarray, matrices: int) -> np.ndarray:
    """Four bytes a number."""
    return FLOAT_BYTES * numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateTransform:
    """One step between the clients' training and the method.

    Attributes:
      apply: ``(start, trained, trainable, weight: float32[c], key: Key[c]) -> (trained, weight)``,
        traced. All leaves are ``[c, ...]``; ``trainable`` holds booleans that broadcast against
        them. Entries that are not trainable come back bit for bit; a weight of 0 means absent,
        and a client that is to be left out gets it.
      stage: where it happens: at each client, on the wire, or at the server, which sees all
        clients.
      uplink_bytes: ``(numbers: int64[c], matrices) -> int64[c]``, what a client's numbers, of so
        many matrices, take on the way up.
      is_aggregate: what clients send is replaced by a statistic over the cohort, which only a
        method that averages returns.
      noise: for the accountant.
    """

    apply: Callable[
        [ClientParams, ClientParams, ClientParams, Array, Key], tuple[ClientParams, Array]
    ]
    stage: Stage
    uplink_bytes: Callable[[np.ndarray, int], np.ndarray] = float32_bytes
    is_aggregate: bool = False
    noise: Noise | None = None


def apply_transforms(
    updates: Sequence[UpdateTransform],
    start: ClientParams,
    trained: ClientParams,
    trainable: ClientParams,
    weight: Float[Array, "c"],
    ids: Int[Array, "c"],
    key: Key,
) -> tuple[ClientParams, Float[Array, "c"]]:
    """All updates, one after the other.

    Args:
      updates: in the order in which they happen.
      start: what the clients began with, ``[c, ...]``.
      trained: what they came back with.
      trainable: booleans that broadcast against both.
      weight: 0 for absent clients, who may hold anything, NaN included.
      ids: of the clients. Random draws belong to (key, update, client), not to a place in the
        cohort, so that every way of executing a round draws the same.
      key: of the round.
    """
    for n, update in enumerate(updates):
        own = jax.random.fold_in(key, n)
        keys = jax.vmap(lambda i, own=own: jax.random.fold_in(own, i))(ids)
        trained, weight = update.apply(start, trained, trainable, weight, keys)
    return trained, weight


def changes(start: Tree, trained: Tree, trainable: Any) -> Tree:
    """What training changed, exactly 0 where nothing may change: ``[c, ...]``."""
    return jax.tree.map(lambda x0, x, m: jnp.where(m, x - x0, 0), start, trained, trainable)


def changed_by(start: Tree, trained: Tree, trainable: Any, change: Tree) -> Tree:
    """``start + change`` where training may change something, ``trained`` elsewhere."""
    return jax.tree.map(
        lambda x0, x, m, d: jnp.where(m, x0 + d, x), start, trained, trainable, change
    )


def norms(change: Any) -> Float[Array, "c"]:
    """The norm of everything that each client changed, over all leaves: ``[c]``."""
    return jnp.sqrt(jax.vmap(trees.square_norm)(change))


def draw(sample: Callable[[Key, tuple[int, ...]], Array], key: Key, like: Tree) -> Tree:
    """Independent draws ``sample(key, shape)`` for every client and every leaf ``[c, ...]``.

    Args:
      sample: such as `jax.random.normal`.
      key: ``[c]``.
      like: gives the shapes.
    """
    leaves, structure = jax.tree.flatten(like)

    def one(n: int, x: Array) -> Array:
        return jax.vmap(lambda k: sample(jax.random.fold_in(k, n), x.shape[1:]))(key)

    return structure.unflatten([one(n, x) for n, x in enumerate(leaves)])


def need_positive(kind: str, **options: float) -> None:
    """Refuse options that are not above 0 and finite."""
    for name, value in options.items():
        if not 0 < value < math.inf:
            raise InputError(f"{kind} needs {name} above 0 and finite, got {value}.")
