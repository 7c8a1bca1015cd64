"""The updates by name, and which of them go together."""

from collections.abc import Callable, Sequence

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.federated.transforms.base import STAGES, UpdateTransform
from fedjax_lora.federated.transforms.clip_noise import clip, gaussian_noise
from fedjax_lora.federated.transforms.compression import bfloat16, int8
from fedjax_lora.federated.transforms.robust import median, reject_outliers, trimmed_mean
from fedjax_lora.methods.base import Method

TRANSFORMS: dict[str, Callable[..., UpdateTransform]] = {
    "clip": clip,
    "gaussian_noise": gaussian_noise,
    "int8": int8,
    "bfloat16": bfloat16,
    "reject_outliers": reject_outliers,
    "median": median,
    "trimmed_mean": trimmed_mean,
}
"""What can happen to the clients' updates on their way to the method."""


def make_transforms(given: Sequence[str], method: Method) -> tuple[UpdateTransform, ...]:
    """The updates named by specs such as ``"clip(norm=1.0)"``, in their order.

    Args:
      given: the specs.
      method: that they are put in front of.

    Raises:
      InputError: an unknown update or option, an order that no round can have (this also keeps
        what looks at several clients behind the noise), two on the wire, noise twice, or a method
        that does not go with them.
    """
    made = tuple(registry.build(spec, TRANSFORMS, "update") for spec in given)
    places = [STAGES.index(update.stage) for update in made]
    if places != sorted(places):
        raise InputError(
            f"Updates {list(given)} are out of order: what clients do (clip, gaussian_noise) comes "
            "before what the wire does (int8, bfloat16), and that before what the server does "
            "(reject_outliers, median, trimmed_mean)."
        )
    if places.count(STAGES.index("wire")) > 1:
        raise InputError(f"Updates {list(given)} quantise twice; keep one of int8 and bfloat16.")
    if any(update.is_aggregate for update in made) and not method.averages:
        raise InputError(
            f"Updates 'median' and 'trimmed_mean' need a method that averages the clients' "
            f"factors, and {method.name!r} does not; take one such as 'masked_mean'."
        )
    noisy = sum(update.noise is not None for update in made)
    if noisy > 1:
        raise InputError(f"Updates {list(given)} add noise twice; add it once.")
    if noisy and method.select is not None:
        raise InputError(
            f"Update 'gaussian_noise' does not cover method {method.name!r}, whose choice of what "
            "to train looks at the clients' data; take a method that does not probe."
        )
    return made
