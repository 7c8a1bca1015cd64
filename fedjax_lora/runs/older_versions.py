"""Runs of older versions: rules that have changed without an option that says so.

(Where a default has changed, the config names what the run has: see
`fedjax_lora.runs.config.former_defaults`.)
"""

import fractions
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fedjax_lora import methods
from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.version import BEFORE_0_3
from fedjax_lora.runs.config import RunConfig

PARTITIONS = ("dirichlet", "quality", "quantity")
"""Partitions whose shares versions before 0.3 rounded in the order of the clients, so that few
examples of a class fell to the same clients in all classes."""


def former_partition(environment: Mapping[str, Any], partition: str) -> str | None:
    """Name the version of a record whose clients would have other examples now.

    >>> former_partition({"packages": {"fedjax-lora": "0.2.0"}}, "quantity(alpha=1.0)")
    'version 0.2.0, which rounded the shares of the partition quantity(alpha=1.0) otherwise'

    Args:
      environment: of the record, see `fedjax_lora.runs.environment`; a summary holds it too.
      partition: the config's ``federation.partition``.

    Returns:
      A part of a sentence; None if this version divides the examples in the same way.
    """
    version = environment.get("packages", {}).get("fedjax-lora", "")
    name, _ = registry.parse(partition, "partition")
    if version not in BEFORE_0_3 or name not in PARTITIONS:
        return None
    return f"version {version}, which rounded the shares of the partition {partition} otherwise"


def computed_otherwise(config: RunConfig) -> Iterator[str]:
    """Yield what this version computes otherwise than those before 0.3, as parts of a sentence."""
    try:
        options = registry.with_defaults(config.federation.method, methods.METHODS, "method")
    except InputError:
        return
    own_scale = config.lora.scale in ("alpha/r", "alpha/sqrt(r)")
    if own_scale and options.get("sigma", "b") != "b":
        yield f"under {config.lora.scale} a client's ratio of scales is now in the factor of sigma"
    if "gamma" in options and _cuts_otherwise(options["gamma"], config.federation.ranks):
        yield f"the tail of a rank now begins at the exact fraction {options['gamma']} of it"
    optimizer = config.federation.server_optimizer
    remembers = "momentum" in optimizer or not optimizer.startswith(("none", "sgd"))
    if remembers and methods.takes_mixed_ranks(config.federation.method):
        yield "a server optimizer now leaves alone what no client of a round owns"


def _cuts_otherwise(gamma: float, ranks: str) -> bool:
    """Whether ``floor(gamma * r)`` in floating point missed the fraction for a possible rank."""
    highest = max((int(n) for n in re.findall(r"\d+", ranks) if int(n) <= 4096), default=0)
    exact = fractions.Fraction(str(gamma))
    return any(math.floor(exact * r) != math.floor(gamma * r) for r in range(1, highest + 1))


def refuse_to_continue(config: RunConfig, version: str | None) -> None:
    """Refuse to go on with a run whose further rounds would be computed by another rule.

    Args:
      config: of the run, as recorded.
      version: that has computed the rounds so far; None for 0.1.

    Raises:
      InputError: names the rules that have changed.
    """
    changed = list(computed_otherwise(config)) if version in BEFORE_0_3 else []
    if changed:
        raise InputError(
            f"This run was begun by version {version or 0.1} of fedjax-lora, and its remaining "
            f"rounds would follow other rules ({'; '.join(changed)}); finish it with that "
            "version, or run it again with --overwrite."
        )
