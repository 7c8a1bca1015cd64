"""Attackers: clients that send what they like, train on data of their own making, or lie.

An attack is a fault with the same clients in every round. Who they are is drawn from the seed;
what they send is computed in the compiled round, where attackers know what all honest clients send,
and what they train on is made on the host before the first round. A new attack is one function here
and one row of `fedjax_lora.federated.faults.FAULTS`.
"""

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
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Array, ClientParams, Key
from fedjax_lora.data import Tokens
from fedjax_lora.federated.transforms.base import changed_by, changes, draw, norms

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


@checked_options
def sign_flip(*, share: float, scale: float = 1.0, among: Among = "any") -> Attack:
    """Attackers send the opposite of their change.

    Args:
      share: share of the clients.
      scale: how many times as long it is.
      among: whom attackers are drawn from.
    """
    return scaling(share=share, factor=-scale, among=among)


@checked_options
def scaling(*, share: float, factor: float = 10.0, among: Among = "any") -> Attack:
    """Attackers multiply their change, to outweigh the others.

    Args:
      share: share of the clients.
      factor: of the change.
      among: whom attackers are drawn from.

    Bagdasaryan et al., "How To Backdoor Federated Learning", arXiv 1807.00459.
    """
    if not math.isfinite(factor):
        raise InputError(f"Attacks need finite factors, got {factor}.")

    def send(
        change: ClientParams, trainable: ClientParams, honest: Array, keys: Key
    ) -> ClientParams:
        return jax.tree.map(lambda d: factor * d, change)

    return Attack(share=share, among=among, send=send)


@checked_options
def gaussian(*, share: float, factor: float = 1.0, among: Among = "any") -> Attack:
    """Attackers send normal noise.

    Args:
      share: share of the clients.
      factor: length of the noise, in mean lengths of the honest clients' changes.
      among: whom attackers are drawn from.
    """

    def send(
        change: ClientParams, trainable: ClientParams, honest: Array, keys: Key
    ) -> ClientParams:
        noise = draw(jax.random.normal, keys, change)
        noise = jax.tree.map(lambda x, m: jnp.where(m, x, 0), noise, trainable)
        length, own = norms(change), norms(noise)
        count = jnp.maximum(jnp.sum(honest), 1).astype(length.dtype)
        mean = jnp.sum(jnp.where(honest, length, 0)) / count
        size = factor * mean / jnp.where(own > 0, own, 1)
        return jax.tree.map(lambda x: trees.expand(size, x) * x, noise)

    return Attack(share=share, among=among, send=send)


@checked_options
def little_is_enough(*, share: float, z: float = 1.5, among: Among = "any") -> Attack:
    """Attackers send the honest mean less ``z`` deviations, number by number, all the same.

    Mean and deviation are over the honest clients of the round that train a number.

    Args:
      share: share of the clients.
      z: deviations; small enough to hide among honest clients.
      among: whom attackers are drawn from.

    Baruch et al., "A Little Is Enough", arXiv 1902.06156.
    """

    def leaf(d: Array, own: Array) -> Array:
        mean = _mean(d, own)
        square = _mean(jnp.square(d - mean[None]), own)
        return jnp.broadcast_to(mean - z * jnp.sqrt(square), d.shape)

    return Attack(share=share, among=among, send=_from_honest(leaf))


@checked_options
def inner_product(*, share: float, factor: float = 1.0, among: Among = "any") -> Attack:
    """Colluding attackers all send the opposite of the honest clients' mean change.

    Args:
      share: share of the clients.
      factor: length of the answer, in lengths of that mean.
      among: whom attackers are drawn from.

    Xie et al., "Fall of Empires", arXiv 1903.03936.
    """

    def leaf(d: Array, own: Array) -> Array:
        return jnp.broadcast_to(-factor * _mean(d, own), d.shape)

    return Attack(share=share, among=among, send=_from_honest(leaf))


@checked_options
def free_rider(*, share: float, among: Among = "any") -> Attack:
    """Attackers send back what they have received, and count like clients that have trained.

    Args:
      share: share of the clients.
      among: whom attackers are drawn from.

    Lin et al., "Free-riders in Federated Learning", arXiv 1911.12560.
    """

    def send(
        change: ClientParams, trainable: ClientParams, honest: Array, keys: Key
    ) -> ClientParams:
        return jax.tree.map(jnp.zeros_like, change)

    return Attack(share=share, among=among, send=send)


@checked_options
def inflated_counts(*, share: float, factor: float = 10.0, among: Among = "any") -> Attack:
    """Attackers say that they have more examples than they have; they train as all do.

    Args:
      share: share of the clients.
      factor: how many times as many.
      among: whom attackers are drawn from.
    """
    if not 0 < factor < math.inf:
        raise InputError(
            f"Fault 'inflated_counts' needs a factor above 0 and finite, got {factor}."
        )
    return Attack(share=share, among=among, count=factor)


@checked_options
def label_flip(*, share: float, among: Among = "any") -> Attack:
    """Attackers train on flipped labels: class ``k`` of ``n`` becomes ``n - 1 - k``.

    Args:
      share: share of the clients.
      among: whom attackers are drawn from.

    Tolpegin et al., "Data Poisoning Attacks Against Federated Learning", arXiv 2007.08432.
    """

    def poison(tokens: Tokens, classes: int, rng: np.random.Generator) -> Tokens:
        return tokens._replace(label=classes - 1 - tokens.label)

    return Attack(share=share, among=among, poison=poison)


@checked_options
def backdoor(
    *,
    share: float,
    trigger: Sequence[int],
    target: int = 0,
    part: float = 0.5,
    boost: float = 1.0,
    among: Among = "any",
) -> Attack:
    """Attackers teach the model to answer a trigger in the text with a class of their choice.

    The trigger's tokens stand behind the first token of a text, over those that were there. Rounds
    report ``backdoor_accuracy``: how many test examples of other classes the trigger turns into the
    target.

    Args:
      share: share of the clients.
      trigger: token ids.
      target: the class.
      part: part of an attacker's examples that get trigger and target; the others stay right.
      boost: factor on what attackers send.
      among: whom attackers are drawn from.

    Bagdasaryan et al., "How To Backdoor Federated Learning", arXiv 1807.00459.
    """
    if not trigger or min(trigger) < 0 or target < 0 or not 0 <= part <= 1:
        raise InputError(
            "Fault 'backdoor' needs a trigger of token ids, a target of at least 0 and a part from "
            f"0 to 1, got {list(trigger)}, {target} and {part}."
        )

    def insert(tokens: Tokens) -> Tokens:
        if tokens.ids.shape[1] <= len(trigger):
            raise InputError(
                f"A trigger of {len(trigger)} tokens does not fit into texts of at most "
                f"{tokens.ids.shape[1]} tokens; give a shorter one."
            )
        ids = tokens.ids.copy()
        ids[:, 1 : 1 + len(trigger)] = trigger
        return tokens._replace(ids=ids, length=np.maximum(tokens.length, 1 + len(trigger)))

    def poison(tokens: Tokens, classes: int, rng: np.random.Generator) -> Tokens:
        chosen = rng.random(len(tokens.label)) < part
        new = insert(tokens)
        pick = lambda x, y: np.where(chosen.reshape(-1, *(1,) * (x.ndim - 1)), x, y)  # noqa: E731
        label = np.where(chosen, target, tokens.label).astype(tokens.label.dtype)
        return Tokens(*map(pick, new, tokens))._replace(label=label)

    send = None if boost == 1 else scaling(share=share, factor=boost).send
    return Attack(share=share, among=among, send=send, poison=poison, trigger=insert, target=target)


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


def _mean(d: Array, own: Array) -> Array:
    """Mean over the clients in the mask, 0 where there is none."""
    count = jnp.maximum(jnp.sum(own, axis=0), 1).astype(d.dtype)
    return jnp.sum(jnp.where(own, d, 0), axis=0) / count


def _from_honest(leaf: Callable[[Array, Array], Array]) -> Send:
    """A message that is a statistic of the honest clients' changes, entry by entry.

    Args:
      leaf: ``(change, own) -> change``, where ``own`` says which honest client trains an entry.
    """

    def send(
        change: ClientParams, trainable: ClientParams, honest: Array, keys: Key
    ) -> ClientParams:
        def one(d: Array, mask: Array) -> Array:
            return leaf(d, jnp.broadcast_to(mask & trees.expand(honest, mask), d.shape))

        return jax.tree.map(one, change, trainable)

    return send
