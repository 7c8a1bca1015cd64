"""Federated LoRA methods.

`METHODS` lists them by name; each is a public factory, such as `hlora`. Another method needs a
factory of its own.

A rule that averages components needs one function, the weights of each client's components. This
one lets the client with the most examples decide:

>>> import jax.numpy as jnp
>>> from fedjax_lora import methods
>>> def biggest(spec):
...     '''The factors of the client with the most examples.'''
...     def weigh(cohort, start, result):
...         chosen = jnp.arange(cohort.weight.shape[0]) == jnp.argmax(cohort.weight)
...         owned = chosen[:, None] & methods.owners(cohort, spec.rank)
...         return owned.astype(jnp.float32)
...     return methods.averaging(spec, weigh, name="biggest")
>>> methods.METHODS["biggest"] = biggest
>>> methods.summary("biggest")
'The factors of the client with the most examples.'
>>> _ = methods.METHODS.pop("biggest")

Now ``method="biggest"`` works in a config, and the property tests include it. Anything else is a
`Method` record of its own; see `fedjax_lora.methods.flora` for a short one.
"""

import inspect
from collections.abc import Callable

import numpy as np

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.alternating import fedsvd, ffa_lora, rolora
from fedjax_lora.methods.averaging import (
    Empty,
    Weights,
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
    client_kernels,
    truncated_start,
)
from fedjax_lora.methods.core_matrix import fed_sb, ravan
from fedjax_lora.methods.eclora import eclora
from fedjax_lora.methods.fed_plora import fed_plora
from fedjax_lora.methods.fedhl import fedhl
from fedjax_lora.methods.fedmomentum import fedmomentum
from fedjax_lora.methods.fedrora import fedrora
from fedjax_lora.methods.fedrot import fedrot_lora
from fedjax_lora.methods.fedsa import fedsa_lora
from fedjax_lora.methods.flora import flora
from fedjax_lora.methods.florist import florist
from fedjax_lora.methods.frlora import frlora
from fedjax_lora.methods.fslora import fslora
from fedjax_lora.methods.hetlora import hetlora
from fedjax_lora.methods.lora_a2 import lora_a2
from fedjax_lora.methods.rank_aware import raflora, rb_lora
from fedjax_lora.methods.residual import fedex_lora, lora_fair
from fedjax_lora.methods.svd import Sigma, flexlora, hlora, refactoring

METHODS: dict[str, Callable[..., Method]] = {
    factory.__name__: factory
    for factory in (
        fedit,
        zero_padding,
        hetlora,
        masked_mean,
        replication,
        fed_plora,
        hlora,
        flexlora,
        flora,
        raflora,
        rb_lora,
        florist,
        fslora,
        ffa_lora,
        rolora,
        lora_a2,
        fedex_lora,
        lora_fair,
        fedsa_lora,
        fedrora,
        fedhl,
        fedmomentum,
        eclora,
        fedsvd,
        fedrot_lora,
        frlora,
        ravan,
        fed_sb,
    )
}
"""Factories ``(spec, *, ...options) -> Method`` by the method's name."""


def make(name: str, spec: LoraSpec) -> Method:
    """Make a method from a string such as ``"replication(inner='uniform')"``.

    Args:
      name: a name of `METHODS`, with options in brackets if there are any.
      spec: where the adapters are.

    Raises:
      InputError: unknown method or option.
    """
    return registry.build(name, METHODS, "method", spec=spec)


def takes_mixed_ranks(name: str) -> bool:
    """Whether a method takes clients of different ranks, by its own check.

    >>> takes_mixed_ranks("fedit"), takes_mixed_ranks("hlora")
    (False, True)

    Raises:
      InputError: unknown method or option.
    """
    try:
        _without_layers(name).check(np.array([1, 2]))
    except InputError:
        return False
    return True


def paper(name: str) -> str:
    """Where a method is described.

    >>> paper("hlora(sigma='b')")
    'arXiv 2503.00813'

    Raises:
      InputError: unknown method or option.
    """
    return _without_layers(name).paper


def _without_layers(name: str) -> Method:
    """The method on a spec without any layer: enough for what does not depend on a model."""
    return make(name, LoraSpec(targets=(), rank=2, alpha=2.0))


def summary(name: str) -> str:
    """The first line of a method's docstring."""
    return (inspect.getdoc(METHODS[name]) or "").split("\n", maxsplit=1)[0]


__all__ = [
    "METHODS",
    "AggregateResult",
    "ClientInit",
    "Cohort",
    "Empty",
    "Method",
    "ServerState",
    "Sigma",
    "Traffic",
    "Weights",
    "averaging",
    "client_kernels",
    "combine",
    "eclora",
    "fed_plora",
    "fed_sb",
    "fedex_lora",
    "fedhl",
    "fedit",
    "fedmomentum",
    "fedrora",
    "fedrot_lora",
    "fedsa_lora",
    "fedsvd",
    "ffa_lora",
    "flexlora",
    "flora",
    "florist",
    "frlora",
    "fslora",
    "hetlora",
    "hlora",
    "keep_unowned",
    "lora_a2",
    "lora_fair",
    "make",
    "masked_mean",
    "owner_shares",
    "owners",
    "paper",
    "raflora",
    "ravan",
    "rb_lora",
    "refactoring",
    "replication",
    "rolora",
    "shares",
    "summary",
    "takes_mixed_ranks",
    "truncated_start",
    "zero_padding",
]
