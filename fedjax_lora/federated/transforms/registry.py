"""Update transforms by name, and the rules for combining them."""

from collections.abc import Callable, Sequence

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.transforms.base import STAGES, UpdateTransform
from fedjax_lora.federated.transforms.clip_noise import central_noise, clip, gaussian_noise
from fedjax_lora.federated.transforms.compression import bfloat16, int8
from fedjax_lora.federated.transforms.products import (
    foolsgold,
    geometric_median,
    krum,
    reject_dissimilar,
)
from fedjax_lora.federated.transforms.robust import (
    median,
    norm_bound,
    reject_outliers,
    trimmed_mean,
)
from fedjax_lora.methods.base import Method

TRANSFORMS: dict[str, Callable[..., UpdateTransform]] = {
    "clip": clip,
    "gaussian_noise": gaussian_noise,
    "central_noise": central_noise,
    "int8": int8,
    "bfloat16": bfloat16,
    "reject_outliers": reject_outliers,
    "norm_bound": norm_bound,
    "reject_dissimilar": reject_dissimilar,
    "krum": krum,
    "foolsgold": foolsgold,
    "geometric_median": geometric_median,
    "median": median,
    "trimmed_mean": trimmed_mean,
}
"""Factories of update transforms by name; options are their keyword arguments."""


def make_transforms(specs: Sequence[str], method: Method) -> tuple[UpdateTransform, ...]:
    """Make the update transforms that specs such as ``"clip(norm=1.0)"`` name, in their order.

    Args:
      specs: names in `TRANSFORMS`, with options.
      method: the method that aggregates the transformed updates.

    Raises:
      InputError: an unknown transform or option; transforms out of order (which also keeps server
        transforms behind the noise); two on the wire; noise twice; or a method that does not
        combine with them.
    """
    updates = tuple(registry.build(spec, TRANSFORMS, "update") for spec in specs)
    check_transforms(updates, specs, method)
    return updates


def check_transforms(
    updates: Sequence[UpdateTransform], specs: Sequence[str], method: Method
) -> None:
    """Check that update transforms go with each other and with a method.

    Args:
      updates: the transforms, in their order.
      specs: their names and options, for the message.
      method: the method that aggregates the transformed updates.

    Raises:
      InputError: as `make_transforms`.
    """
    _check_order(list(specs), updates)
    if any(update.is_aggregate for update in updates) and not method.averages:
        raise InputError(
            f"Updates 'median' and 'trimmed_mean' need a method that averages the clients' "
            f"factors, and {method.name!r} does not; take one such as 'masked_mean'."
        )
    if any(update.central for update in updates):
        _check_central(updates, specs, method)
    if any(update.noise is not None for update in updates) and method.select is not None:
        raise InputError(
            f"Update 'gaussian_noise' does not cover method {method.name!r}, whose choice of what "
            "to train looks at the clients' data; take a method that does not probe."
        )


def _check_central(
    updates: Sequence[UpdateTransform], specs: Sequence[str], method: Method
) -> None:
    """Refuse central noise where a client's share of the aggregate is not known beforehand."""
    if not method.averages or method.trim is not None:
        raise InputError(
            "Update 'central_noise' needs a mean of the clients' factors with weights that do not "
            f"depend on them, and method {method.name!r} has another aggregate, whose sensitivity "
            "is not known; take a method such as 'masked_mean', or 'gaussian_noise', which goes "
            "with every method."
        )
    if len(updates) > 1:
        raise InputError(
            f"Updates {list(specs)}: 'central_noise' is used alone, because after other "
            "transforms a client's part of the mean has no known bound; leave out the others."
        )


def _check_order(specs: list[str], updates: Sequence[UpdateTransform]) -> None:
    stages = [STAGES.index(update.stage) for update in updates]
    if stages != sorted(stages):
        raise InputError(
            f"Updates {specs} are out of order: what clients do (clip, gaussian_noise) comes "
            "before what the wire does (int8, bfloat16), and that before what the server does "
            "(reject_outliers, norm_bound, reject_dissimilar, krum, foolsgold, geometric_median, "
            "median, trimmed_mean)."
        )
    if stages.count(STAGES.index("wire")) > 1:
        raise InputError(f"Updates {specs} quantise twice; keep one of int8 and bfloat16.")
    if sum(update.noise is not None for update in updates) > 1:
        raise InputError(f"Updates {specs} add noise twice; add it once.")
