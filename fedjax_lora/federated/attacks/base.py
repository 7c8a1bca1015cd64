"""The attack: what some clients do in every round, and how it takes the place of their messages."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Array, ClientParams, Key
from fedjax_lora.data import Tokens
from fedjax_lora.federated.transforms.base import changed_by, changes

Among = Literal["any", "low", "high"]
"""Who may be an attacker: anyone, or first those of the lowest or of the highest ranks."""

Send = Callable[[ClientParams, ClientParams, Array, Key], ClientParams]
"""``(change, trainable, honest: bool[c], keys) -> change`` of attackers, all leaves ``[c, ...]``.

``change`` is exact for honest clients too; only the entries of attackers are taken of the result.
"""

Poison = Callable[[Tokens, int, np.random.Generator], Tokens]
"""``(examples, classes, rng) -> examples`` that an attacker trains on in place of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """What some clients do in every round in which they are drawn.

    Attributes:
      share: share of all clients that attack, rounded to the nearest number.
      among: whom they are drawn from.
      send: what they send in place of their change; None for what they have trained.
      poison: what they train on; None for their examples.
      trigger: changes a test example so that a backdoor answers, ``(tokens) -> tokens``.
      target: class that the backdoor answers with.
      count: how many times as many examples they say they have.
    """

    share: float
    among: Among = "any"
    send: Send | None = None
    poison: Poison | None = None
    trigger: Callable[[Tokens], Tokens] | None = None
    target: int = 0
    count: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"An attack needs a share from 0 to 1, got {self.share}.")

    def attackers(self, rank: np.ndarray, draw: Sequence[int]) -> np.ndarray:
        """Return who attacks, ``bool[N]``.

        Args:
          rank: ranks of all clients, ``int[N]``.
          draw: what the draw belongs to: seed, and the number of the fault.
        """
        order = np.random.default_rng([*draw, 5]).permutation(len(rank))
        if self.among != "any":
            sign = 1 if self.among == "low" else -1
            order = order[np.argsort(sign * rank[order], kind="stable")]
        count = math.floor(Fraction(str(self.share)) * len(rank) + Fraction(1, 2))
        found = np.zeros(len(rank), bool)
        found[order[:count]] = True
        return found


def send_attacks(
    attacks: Sequence[Attack],
    start: ClientParams,
    trained: ClientParams,
    trainable: ClientParams,
    weight: Array,
    attackers: Sequence[Array],
    keys: Key,
) -> ClientParams:
    """Replace what attackers send.

    Args:
      attacks: in their order; who commits two of them does the last.
      start: parameters before local training, ``[c, ...]``.
      trained: parameters after it.
      trainable: booleans that broadcast against both.
      weight: 0 for absent clients.
      attackers: who commits each attack, ``bool[c]`` each.
      keys: one per client, ``[c]``.
    """
    present = weight > 0
    honest = present & ~jnp.any(jnp.stack([*attackers]), axis=0)
    change = changes(start, trained, trainable)
    change = trees.where(present, change, jax.tree.map(jnp.zeros_like, change))
    for n, (attack, own) in enumerate(zip(attacks, attackers, strict=True)):
        if attack.send is None:
            continue
        own_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)
        new = attack.send(change, trainable, honest, own_keys)
        trained = trees.where(own, changed_by(start, trained, trainable, new), trained)
    return trained
