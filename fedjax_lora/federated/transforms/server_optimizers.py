"""Optimizers that take the change a method makes in a round as a gradient.

The *pseudo-gradient* is ``old - new`` over the global adapter and head; following it with learning
rate 1 is what the method does by itself. Reddi et al., "Adaptive Federated Optimization", arXiv
2003.00295, whose defaults these are (their ``tau`` is optax's ``eps``); optax corrects the bias of
the moments, which the paper does not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import ClientParams
from fedjax_lora.federated.transforms.base import need_positive
from fedjax_lora.methods.base import Method

ServerOptimizer = optax.GradientTransformation


def none() -> None:
    """The method's own result."""


def sgd(*, learning_rate: float = 1.0, momentum: float = 0.0) -> ServerOptimizer:
    """Gradient descent; with momentum FedAvgM (Hsu et al., arXiv 1909.06335)."""
    need_positive("Server optimizer 'sgd'", learning_rate=learning_rate)
    _need_decays("sgd", momentum=momentum)
    return optax.sgd(learning_rate, momentum=momentum or None)


def adam(
    *, learning_rate: float = 1e-2, b1: float = 0.9, b2: float = 0.99, eps: float = 1e-3
) -> ServerOptimizer:
    """FedAdam."""
    need_positive("Server optimizer 'adam'", learning_rate=learning_rate, eps=eps)
    _need_decays("adam", b1=b1, b2=b2)
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


def yogi(
    *, learning_rate: float = 1e-2, b1: float = 0.9, b2: float = 0.99, eps: float = 1e-3
) -> ServerOptimizer:
    """FedYogi."""
    need_positive("Server optimizer 'yogi'", learning_rate=learning_rate, eps=eps)
    _need_decays("yogi", b1=b1, b2=b2)
    # By default optax begins both moments above 0, and what never had a gradient would move.
    rescale = optax.scale_by_yogi(b1=b1, b2=b2, eps=eps, initial_accumulator_value=0.0)
    return optax.chain(rescale, optax.scale_by_learning_rate(learning_rate))


SERVER_OPTIMIZERS: dict[str, Callable[..., ServerOptimizer | None]] = {
    "none": none,
    "sgd": sgd,
    "adam": adam,
    "yogi": yogi,
}
"""How the server follows what the method makes of a round."""


def _need_decays(name: str, **options: float) -> None:
    for option, value in options.items():
        if not 0 <= value < 1:
            raise InputError(f"Server optimizer {name!r} needs {option} in [0, 1), got {value}.")


def make_server_optimizer(spec: str, method: Method) -> ServerOptimizer | None:
    """The server optimizer named by a spec such as ``"adam(learning_rate=0.03)"``.

    Args:
      spec: see `SERVER_OPTIMIZERS`.
      method: whose result it follows.

    Raises:
      InputError: unknown name or option, or a method whose change is not a direction.
    """
    made = registry.build(spec, SERVER_OPTIMIZERS, "server optimizer")
    if made is not None and not method.averages:
        raise InputError(
            f"Server optimizer {spec!r} needs a method that averages the clients' factors, and "
            f"{method.name!r} does not; take server optimizer 'none', or a method such as "
            "'masked_mean'."
        )
    return made


def server_step(
    optimizer: ServerOptimizer,
    moments: Any,
    old: ClientParams,
    new: ClientParams,
    somebody: Bool[Array, ""],
) -> tuple[ClientParams, Any]:
    """One step of the server.

    Args:
      optimizer: an optax transformation.
      moments: its state.
      old: global adapter and head before the round.
      new: what the method makes of them.
      somebody: whether anybody's update counted; if not, nothing moves, moments included.
    """
    gradient = jax.tree.map(jnp.subtract, old, new)
    # optax itself is written for JAX's standard promotion.
    with jax.numpy_dtype_promotion("standard"):
        steps, after = optimizer.update(gradient, moments, old)
    followed = optax.apply_updates(old, steps)
    return jax.tree.map(lambda x, y: jnp.where(somebody, x, y), (followed, after), (old, moments))
