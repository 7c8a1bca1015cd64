"""Runs that an older version began: rules that have changed without an option that says so.

(Where a default has changed, the config names what the run has: see
`fedjax_lora.runs.config.older_versions`.)
"""

import fractions
import math
import re
from collections.abc import Iterator

from fedjax_lora import methods
from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.version import BEFORE_0_3
from fedjax_lora.runs.config import RunConfig


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
            f"This run was begun by version {version or 0.1} of fedjax-lora, and its other rounds "
            f"would follow another rule ({'; '.join(changed)}); finish it with that version, or "
            "run it anew with --overwrite."
        )
