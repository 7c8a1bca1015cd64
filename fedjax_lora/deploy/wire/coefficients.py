"""Coefficients between the factors in messages: one for a component, or its row of a core."""

from collections.abc import Mapping

import numpy as np

from fedjax_lora.core.types import LoRA
from fedjax_lora.deploy.message import Refused
from fedjax_lora.deploy.wire.contents import Start
from fedjax_lora.lora import LoraSpec


def width_of(start: Start, spec: LoraSpec) -> int:
    """How many coefficients a component has, 0 for none."""
    if not start.params.coefficients:
        return 0
    first = spec.targets[0]
    sizes = np.asarray(dict(start.params.coefficients)[first.path])
    return sizes.shape[-1] if sizes.ndim > len(first.stack) + 1 else 1


def trained_rows(start: Start, trained: Mapping[str, LoRA]) -> dict[str, np.ndarray]:
    """The components of which a client trains the coefficients, ``bool[(L,) R]`` per path.

    Args:
      start: of the client.
      trained: which components of either factor it trains.

    Raises:
      Refused: some coefficients of a component are trained and others not.
    """
    rows = {}
    for path, mask in dict(start.trainable.coefficients or {}).items():
        like, own = trained[path].a, np.asarray(mask)
        if own.ndim > like.ndim:
            if own.shape[-1] != 1:
                raise Refused(f"Coefficients of {path} are trained in part; messages cannot.")
            own = own[..., 0]
        rows[path] = np.broadcast_to(own, like.shape)
    return rows


def with_a_factor(trained: Mapping[str, LoRA]) -> dict[str, np.ndarray]:
    """The components of which either factor is trained, ``bool[(L,) R]`` per path."""
    return {path: np.logical_or(pair.a, pair.b) for path, pair in trained.items()}
