"""Attacks on training data: attackers send what they have honestly trained on poisoned examples."""

from collections.abc import Sequence

import numpy as np

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.data import Tokens
from fedjax_lora.federated.attacks.base import Among, Attack
from fedjax_lora.federated.attacks.messages import scaling


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
