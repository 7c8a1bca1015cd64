"""Attackers that train on data of their own making, and the test of a backdoor."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_lora.core.errors import InputError
from fedjax_lora.data import Task, Tokens
from fedjax_lora.evaluation.evaluator import LabelledSplit
from fedjax_lora.federated.attacks import Attack
from fedjax_lora.runs.loading import Assets


class TrainingData(NamedTuple):
    """The training examples of all clients.

    Attributes:
      tokens: the examples; those that attackers have made come last.
      members: per client, its rows.
    """

    tokens: Tokens
    members: tuple[np.ndarray, ...]


def poisoned(
    attacks: Sequence[Attack],
    attackers: Sequence[np.ndarray],
    task: Task,
    data: TrainingData,
    seed: int,
) -> TrainingData:
    """Give attackers copies of their examples, changed as their attack does.

    Args:
      attacks: in their order.
      attackers: who commits each, ``bool[N]``.
      task: the task.
      data: the clients' own examples.
      seed: of the run.

    Raises:
      InputError: the task has no classes, or not the one that a backdoor answers.
    """
    for n, (attack, own) in enumerate(zip(attacks, attackers, strict=True)):
        if attack.poison is None:
            continue
        _check(attack, task)
        for client in np.flatnonzero(own):
            mine = Tokens(*(x[data.members[client]] for x in data.tokens))
            rng = np.random.default_rng([seed, 8, n, int(client)])
            made = attack.poison(mine, len(task.classes), rng)
            rows = len(data.tokens.label) + np.arange(len(made.label))
            tokens = Tokens(*map(_joined, data.tokens, made))
            members = list(data.members)
            members[client] = rows.astype(members[client].dtype)
            data = TrainingData(tokens, tuple(members))
    return data


def backdoor_splits(attacks: Sequence[Attack], assets: Assets) -> list[LabelledSplit]:
    """Return the test examples of other classes with a backdoor's trigger, its target as label."""
    found = []
    for attack in attacks:
        if attack.trigger is None:
            continue
        others = np.flatnonzero(assets.test.label != attack.target)
        tokens = attack.trigger(Tokens(*(x[others] for x in assets.test)))
        label = np.full_like(tokens.label, attack.target)
        split = assets.task.test._replace(
            texts=[assets.task.test.texts[k] for k in others],
            pairs=None,
            labels=label,
            groups=None,
        )
        found.append(LabelledSplit("backdoor_", split, tokens._replace(label=label)))
    return found[:1]


def _joined(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.concatenate([x, y.astype(x.dtype)])


def _check(attack: Attack, task: Task) -> None:
    if task.type != "classification":
        raise InputError(
            f"Attacks on labels need a task with classes, and {task.name!r} has none; take one of "
            "what attackers send, such as sign_flip."
        )
    if attack.trigger is not None and attack.target >= len(task.classes):
        raise InputError(
            f"Fault 'backdoor' has the target {attack.target}, but task {task.name!r} has the "
            f"classes 0..{len(task.classes) - 1}."
        )
