"""Attackers: clients that send what they like, train on data of their own making, or lie.

An attack is a fault with the same clients in every round. Who they are is drawn from the seed;
what they send is computed in the compiled round, where attackers know what all honest clients send,
and what they train on is made on the host before the first round. A new attack is one function in
`messages` or `poisoning` and one row of `fedjax_lora.federated.faults.FAULTS`.
"""

from fedjax_lora.federated.attacks.base import Among, Attack, Poison, Send, send_attacks
from fedjax_lora.federated.attacks.messages import (
    free_rider,
    gaussian,
    inflated_counts,
    inner_product,
    little_is_enough,
    scaling,
    sign_flip,
)
from fedjax_lora.federated.attacks.poisoning import backdoor, label_flip

__all__ = [
    "Among",
    "Attack",
    "Poison",
    "Send",
    "backdoor",
    "free_rider",
    "gaussian",
    "inflated_counts",
    "inner_product",
    "label_flip",
    "little_is_enough",
    "scaling",
    "send_attacks",
    "sign_flip",
]
