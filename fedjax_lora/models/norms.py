"""LayerNorm and RMSNorm, computed in float32, with their results in the compute dtype.

On accelerators the backward pass reads the normalised values in the compute dtype and one number
per token; differentiated by JAX it would read several float32 arrays of the size of the states.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora.core.target import current_target


def layer_norm(x: Array, *, name: str, eps: float, dtype: str, bias: bool = True) -> Array:
    """LayerNorm of the last axis; to be called inside a module, whose child it is.

    Args:
      x: the states.
      name: of the child, which has ``scale`` and ``bias``.
      eps: added to the variance.
      dtype: of the result.
      bias: False for a child without ``bias``.
    """
    if not current_target().is_cpu:
        return _KeepsNormalised(eps, dtype, centred=True, shifted=bias, name=name)(x)
    # The fast variance E[x^2] - E[x]^2 cancels; PyTorch computes the exact one.
    norm = nn.LayerNorm(
        name=name, epsilon=eps, dtype=jnp.float32, use_bias=bias, use_fast_variance=False
    )
    return norm(x.astype(jnp.float32)).astype(dtype)


def rms_norm(x: Array, *, name: str, eps: float, dtype: str, offset: float = 0.0) -> Array:
    """RMSNorm of the last axis, with the arguments of `layer_norm`; its child has no ``bias``.

    Args:
      x: the states.
      name: of the child.
      eps: added to the mean square.
      dtype: of the result.
      offset: added to the child's ``scale``, as in Gemma, whose scales are stored less 1.
    """
    if offset or not current_target().is_cpu:
        return _KeepsNormalised(eps, dtype, centred=False, offset=offset, name=name)(x)
    norm = nn.RMSNorm(name=name, epsilon=eps, dtype=jnp.float32)
    return norm(x.astype(jnp.float32)).astype(dtype)


class _KeepsNormalised(nn.Module):
    """A norm with the parameters of Flax's and `normalise`."""

    eps: float
    dtype: str
    centred: bool
    offset: float = 0.0
    shifted: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*n h"]) -> Float[Array, "*n h"]:
        width = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width) if self.shifted else 0 * scale
        arrays = (z.astype(jnp.float32) for z in (x, scale + self.offset, bias))
        return normalise(self.eps, self.dtype, self.centred, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def normalise(
    eps: float,
    dtype: str,
    centred: bool,
    x: Float[Array, "*n h"],
    scale: Float[Array, " h"],
    bias: Float[Array, " h"],
) -> Float[Array, "*n h"]:
    """Scale and shift ``(x - mean) / sqrt(variance + eps)``, or without a mean if not ``centred``.

    Args:
      eps: added to the variance.
      dtype: of the result, and of the normalised values that the backward pass reads.
      centred: whether the mean is subtracted.
      x: float32 states; the last axis is normalised.
      scale: float32.
      bias: float32.
    """
    return _forward(eps, dtype, centred, x, scale, bias)[0]


def _forward(
    eps: float, dtype: str, centred: bool, x: Array, scale: Array, bias: Array
) -> tuple[Array, Any]:
    if centred:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    row = (1,) * (x.ndim - 1) + scale.shape
    y = x * (inverse * scale.reshape(row)) + bias.reshape(row)
    return y.astype(dtype), ((x * inverse).astype(dtype), inverse, scale)


def _backward(
    eps: float, dtype: str, centred: bool, kept: Any, gradient: Array
) -> tuple[Array, Array, Array]:
    normalised, inverse, scale = kept
    normalised, gradient = (z.astype(scale.dtype) for z in (normalised, gradient))
    inner = gradient * scale.reshape((1,) * (gradient.ndim - 1) + scale.shape)
    mean = lambda z: jnp.mean(z, axis=-1, keepdims=True)  # noqa: E731
    along = inner - normalised * mean(inner * normalised)
    if centred:
        along = along - mean(inner)
    rows = tuple(range(gradient.ndim - 1))
    scale_gradient = jnp.sum(gradient * normalised, axis=rows)
    return inverse * along, scale_gradient, jnp.sum(gradient, axis=rows)


normalise.defvjp(_forward, _backward)
