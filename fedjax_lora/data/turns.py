"""Turns of a conversation."""

from typing import Literal, NamedTuple

Role = Literal["system", "user", "assistant"]


class Turn(NamedTuple):
    """A turn of a conversation.

    Attributes:
      role: who speaks.
      text: what is said.
      learned: whether it is an answer that the loss is on.
    """

    role: Role
    text: str
    learned: bool
