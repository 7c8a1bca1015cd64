"""Activation functions by their Hugging Face names."""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from fedjax_lora.core.target import current_target

_exact_gelu = functools.partial(jax.nn.gelu, approximate=False)
_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _clipped_gelu(x: jax.Array) -> jax.Array:
    return jnp.clip(_exact_gelu(x), -10.0, 10.0)


def _laplace(x: jax.Array) -> jax.Array:
    """The element-wise function of MEGA (arXiv 2209.10655), with the mean and deviation there."""
    mean, deviation = 0.707107, 0.282095
    return 0.5 * (1.0 + jax.lax.erf((x - mean) / (deviation * math.sqrt(2.0))))


def _relu_squared(x: jax.Array) -> jax.Array:
    return jnp.square(jax.nn.relu(x))


def _sqrt_softplus(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jax.nn.softplus(x))


def _linear(x: jax.Array) -> jax.Array:
    return x


# "gelu" is the exact one (erf) and "gelu_new" the tanh approximation: a checkpoint trained with
# one of them is a different function with the other.
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "gelu": _exact_gelu,
        "gelu_10": _clipped_gelu,
        "gelu_accurate": _tanh_gelu,
        "gelu_fast": _tanh_gelu,
        "gelu_new": _tanh_gelu,
        "gelu_python": _exact_gelu,
        "gelu_python_tanh": _tanh_gelu,
        "gelu_pytorch_tanh": _tanh_gelu,
        "hardswish": jax.nn.hard_swish,
        "laplace": _laplace,
        "leaky_relu": jax.nn.leaky_relu,
        "linear": _linear,
        "mish": jax.nn.mish,
        "quick_gelu": _quick_gelu,
        "relu": jax.nn.relu,
        "relu2": _relu_squared,
        "relu6": jax.nn.relu6,
        "sigmoid": jax.nn.sigmoid,
        "silu": jax.nn.silu,
        "sqrtsoftplus": _sqrt_softplus,
        "swish": jax.nn.silu,
        "tanh": jnp.tanh,
    }
)


def activate(name: str, x: jax.Array) -> jax.Array:
    """Apply an activation function.

    On accelerators the backward pass reads its derivative, in the dtype of ``x``; differentiated by
    JAX it would read several arrays of this size. A CPU gains nothing by that.

    Args:
      name: a key of `ACTIVATIONS`.
      x: any array.
    """
    return ACTIVATIONS[name](x) if current_target().is_cpu else _keeping_derivative(name, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _keeping_derivative(name: str, x: jax.Array) -> jax.Array:
    return ACTIVATIONS[name](x)


def _forward(name: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(ACTIVATIONS[name], (x,), (jnp.ones_like(x),))


def _backward(name: str, derivative: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    return (gradient * derivative,)


_keeping_derivative.defvjp(_forward, _backward)
