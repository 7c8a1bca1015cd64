"""Local training in closed form, and an update transform that adds noise, to test faults."""

import jax
import numpy as np

from fedjax_lora import methods
from fedjax_lora.federated import ClientMetrics, Plan, transforms
from tests._helpers.problems import POINTS, STUB


def descend(head: np.ndarray, plan: Plan, place: int) -> np.ndarray:
    """A client's head after gradient descent on its own batches, in float64."""
    w = head.astype(np.float64)
    for s in range(int(plan.batches.steps[place])):
        x = POINTS[plan.batches.index[place, s][plan.batches.valid[place, s]]]
        w = w - plan.rate * (w - x.mean(axis=0, dtype=np.float64))
    return w


def noise() -> transforms.UpdateTransform:
    """Clipping to 1 and noise of deviation 0.5."""
    method = methods.make("zero_padding", STUB)
    spec = "gaussian_noise(multiplier=0.5, norm=1.0)"
    return transforms.make_transforms([spec], method)[0]


def report(loss: jax.Array) -> ClientMetrics:
    """A report of these losses over one example each."""
    return ClientMetrics(loss, loss + 1)
