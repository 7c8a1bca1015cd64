"""Server optimizers, which take the method's change of the global parameters as a gradient.

The *pseudo-gradient* is ``old - new`` over the global adapter and head; gradient descent on it with
learning rate 1 gives the method's own result. Reddi et al., "Adaptive Federated Optimization",
arXiv 2003.00295, with the paper's defaults (its ``tau`` is optax's ``eps``); optax corrects the
bias of the moments, which the paper does not.

What no client of a round owns (components above the cohort's ranks, or that nobody has chosen)
keeps its value and its moments in that round: no client has said anything about it, and momentum of
earlier rounds alone would carry it away. The step count, for the correction of the bias, is common
to all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import ClientParams
from fedjax_lora.federated.transforms.base import need_positive
from fedjax_lora.methods.base import Method

ServerOptimizer = optax.GradientTransformation


def none() -> None:
    """No server optimizer: keep the method's result."""


@checked_options
def sgd(*, learning_rate: float = 1.0, momentum: float = 0.0) -> ServerOptimizer:
    """Gradient descent; with momentum FedAvgM (Hsu et al., arXiv 1909.06335)."""
    need_positive("Server optimizer 'sgd'", learning_rate=learning_rate)
    _need_decays("sgd", momentum=momentum)
    return optax.sgd(learning_rate, momentum=momentum or None)


@checked_options
def adam(
    *, learning_rate: float = 1e-2, b1: float = 0.9, b2: float = 0.99, eps: float = 1e-3
) -> ServerOptimizer:
    """FedAdam (Reddi et al., arXiv 2003.00295)."""
    need_positive("Server optimizer 'adam'", learning_rate=learning_rate, eps=eps)
    _need_decays("adam", b1=b1, b2=b2)
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


@checked_options
def yogi(
    *, learning_rate: float = 1e-2, b1: float = 0.9, b2: float = 0.99, eps: float = 1e-3
) -> ServerOptimizer:
    """FedYogi (Reddi et al., arXiv 2003.00295)."""
    need_positive("Server optimizer 'yogi'", learning_rate=learning_rate, eps=eps)
    _need_decays("yogi", b1=b1, b2=b2)
    # By default optax starts both moments above 0, and entries without any gradient would move.
    rescale = optax.scale_by_yogi(b1=b1, b2=b2, eps=eps, initial_accumulator_value=0.0)
    return optax.chain(rescale, optax.scale_by_learning_rate(learning_rate))


SERVER_OPTIMIZERS: dict[str, Callable[..., ServerOptimizer | None]] = {
    "none": none,
    "sgd": sgd,
    "adam": adam,
    "yogi": yogi,
}
"""Factories of server optimizers by name; options are their keyword arguments."""


def _need_decays(name: str, **options: float) -> None:
    for option, value in options.items():
        if not 0 <= value < 1:
            raise InputError(f"Server optimizer {name!r} needs {option} in [0, 1), got {value}.")


def make_server_optimizer(spec: str, method: Method) -> ServerOptimizer | None:
    """Make the server optimizer that a spec such as ``"adam(learning_rate=0.03)"`` names.

    Args:
      spec: a name in `SERVER_OPTIMIZERS`, with options.
      method: the method whose result the optimizer receives.

    Returns:
      An optax transformation; None for ``"none"``.

    Raises:
      InputError: unknown name or option, or a method that does not average, so that its change is
        no gradient.
    """
    optimizer = registry.build(spec, SERVER_OPTIMIZERS, "server optimizer")
    if optimizer is not None:
        check_method_averages(method, f"Server optimizer {spec!r}")
    return optimizer


def check_method_averages(method: Method, subject: str = "A server optimizer") -> None:
    """Refuse a method whose change is no direction in which an optimizer may go.

    Args:
      method: whose result the optimizer receives.
      subject: what the optimizer is called in the message.

    Raises:
      InputError: the method does not average; singular vectors, for example, may change their sign.
    """
    if not method.averages:
        raise InputError(
            f"{subject} needs a method that averages the clients' factors, and {method.name!r} "
            "does not; take server optimizer 'none', or a method such as 'masked_mean'."
        )


def server_step(
    optimizer: ServerOptimizer,
    opt_state: optax.OptState,
    old: ClientParams,
    new: ClientParams,
    owned: ClientParams,
) -> tuple[ClientParams, optax.OptState]:
    """Apply one step of the server optimizer to what this round's clients own.

    Args:
      optimizer: an optax transformation.
      opt_state: its state.
      old: global adapter and head before the round.
      new: global adapter and head as the method returns them.
      owned: booleans that broadcast against both; what is not owned keeps its value and its
        moments. If nothing is, the whole state is kept.

    Returns:
      The new adapter and head, and the new optimizer state.
    """
    gradient = jax.tree.map(jnp.subtract, old, new)
    # optax relies on JAX's standard promotion rules.
    with jax.numpy_dtype_promotion("standard"):
        updates, next_state = optimizer.update(gradient, opt_state, old)
    params = optax.apply_updates(old, updates)
    anything = jnp.any(jnp.stack([jnp.any(mask) for mask in jax.tree.leaves(owned)]))
    moves = optax.tree_map_params(
        optimizer,
        lambda _, mask: mask,
        opt_state,
        owned,
        transform_non_params=lambda _: anything,
    )
    return jax.tree.map(jnp.where, (owned, moves), (params, next_state), (old, opt_state))
