"""Federated LoRA methods by name, and how to add one.

A rule that averages components needs one function, the weights of each client's components. This
one lets the client with the most examples decide:

>>> import jax.numpy as jnp
>>> from fedjax_lora import methods
>>> def biggest(spec):
...     '''The factors of the client with the most examples.'''
...     def weigh(cohort, start, result):
...         chosen = jnp.arange(cohort.weight.shape[0]) == jnp.argmax(cohort.weight)
...         own = chosen[:, None] & methods.owners(cohort, spec.rank)
...         return own.astype(jnp.float32)
...     return methods.averaging(spec, weigh)
>>> methods.METHODS["biggest"] = methods.Entry(biggest, paper="an example")
>>> methods.summary("biggest")
'The factors of the client with the most examples.'
>>> _ = methods.METHODS.pop("biggest")

Now ``method="biggest"`` works in a config, and the property tests take it up. Anything else is a
`Method` record of its own; see `fedjax_lora.methods.flora` for a short one.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.alternating import ffa_lora, rolora
from fedjax_lora.methods.averaging import (
    averaging,
    combine,
    fedit,
    keep_unowned,
    masked_mean,
    owner_shares,
    owners,
    replication,
    shares,
    zero_padding,
)
from fedjax_lora.methods.base import (
    AggregateResult,
    ClientInit,
    Cohort,
    Method,
    ServerState,
    Traffic,
    truncated_start,
)
from fedjax_lora.methods.fed_plora import fed_plora
from fedjax_lora.methods.fedrora import fedrora
from fedjax_lora.methods.fedsa import fedsa_lora
from fedjax_lora.methods.flora import flora
from fedjax_lora.methods.florist import florist
from fedjax_lora.methods.fslora import fslora
from fedjax_lora.methods.hetlora import hetlora
from fedjax_lora.methods.lora_a2 import lora_a2
from fedjax_lora.methods.rank_aware import raflora, rb_lora
from fedjax_lora.methods.residual import fedex_lora, lora_fair
from fedjax_lora.methods.svd import flexlora, hlora


class Entry(NamedTuple):
    """A row of the registry."""

    factory: Callable[..., Method]
    paper: str


METHODS: dict[str, Entry] = {
    "fedit": Entry(fedit, "arXiv 2305.05644"),
    "zero_padding": Entry(zero_padding, "arXiv 2406.17477"),
    "hetlora": Entry(hetlora, "arXiv 2401.06432"),
    "masked_mean": Entry(masked_mean, "arXiv 2408.08699"),
    "replication": Entry(replication, "arXiv 2406.17477"),
    "fed_plora": Entry(fed_plora, "arXiv 2602.16936"),
    "hlora": Entry(hlora, "arXiv 2503.00813"),
    "flexlora": Entry(flexlora, "arXiv 2402.11505"),
    "flora": Entry(flora, "arXiv 2409.05976"),
    "raflora": Entry(raflora, "arXiv 2602.13486"),
    "rb_lora": Entry(rb_lora, "Findings of EACL 2026"),
    "florist": Entry(florist, "arXiv 2506.09199"),
    "fslora": Entry(fslora, "arXiv 2501.19389"),
    "ffa_lora": Entry(ffa_lora, "arXiv 2403.12313"),
    "rolora": Entry(rolora, "arXiv 2409.02346"),
    "lora_a2": Entry(lora_a2, "arXiv 2410.22815"),
    "fedex_lora": Entry(fedex_lora, "arXiv 2410.09432"),
    "lora_fair": Entry(lora_fair, "arXiv 2411.14961"),
    "fedsa_lora": Entry(fedsa_lora, "arXiv 2410.01463"),
    "fedrora": Entry(fedrora, "arXiv 2609.00632"),
}


def make(name: str, spec: LoraSpec) -> Method:
    """Make a method from a string such as ``"replication(inner='uniform')"``.

    Args:
      name: a name of `METHODS`, with options in brackets if there are any.
      spec: where the adapters are.

    Raises:
      InputError: unknown method or option.
    """
    factories = {name: entry.factory for name, entry in METHODS.items()}
    return registry.build(name, factories, "method", spec=spec)


def takes_mixed_ranks(name: str) -> bool:
    """Whether a method takes clients of different ranks, by its own check.

    >>> takes_mixed_ranks("fedit"), takes_mixed_ranks("hlora")
    (False, True)

    Raises:
      InputError: unknown method or option.
    """
    method = make(name, LoraSpec(targets=(), rank=2, alpha=2.0))
    try:
        method.check(np.array([1, 2]))
    except InputError:
        return False
    return True


def summary(name: str) -> str:
    """The first line of a method's docstring."""
    return (inspect.getdoc(METHODS[name].factory) or "").split("\n", maxsplit=1)[0]


__all__ = [
    "METHODS",
    "AggregateResult",
    "ClientInit",
    "Cohort",
    "Entry",
    "Method",
    "ServerState",
    "Traffic",
    "averaging",
    "combine",
    "keep_unowned",
    "make",
    "owner_shares",
    "owners",
    "shares",
    "summary",
    "takes_mixed_ranks",
    "truncated_start",
]
