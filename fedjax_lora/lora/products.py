"""What an adapter adds to the output of a linear layer, for every form of layer that Flax has."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora.core.errors import InputError


@runtime_checkable
class FactoredKernel(Protocol):
    """The attributes of an `AdaptedKernel` that a product with its factors needs."""

    @property
    def path(self) -> str:
        """The path of the layer."""
        ...

    @property
    def a(self) -> Array:
        """The factor ``[i, R]``."""
        ...

    @property
    def b(self) -> Array:
        """The factor ``[R, o]``."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the base kernel."""
        ...


Term = Callable[[Array, FactoredKernel, Array], Array]
"""``(x, kernel, gain) -> term``: a layer's product with the factors of an `AdaptedKernel`."""

_LETTERS = "zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLKJIHGFEDCBA"


def low_rank_term(
    x: Float[Array, "*n i"],
    a: Float[Array, "i R"],
    b: Float[Array, "R o"],
    gain: Float[Array, " R"],
) -> Float[Array, "*n o"]:
    """``((x @ a) * gain) @ b`` in the dtype of ``x``."""
    a, b, gain = (z.astype(x.dtype) for z in (a, b, gain))
    hidden = x @ a
    return (hidden * gain.reshape((1,) * (hidden.ndim - 1) + gain.shape)) @ b


def last_axis(x: Array, kernel: FactoredKernel, gain: Array) -> Array:
    """The term of a layer that computes ``x @ W``, such as ``Dense``."""
    check_axes(kernel, gain, inputs=1)
    return low_rank_term(x, kernel.a, kernel.b, gain)


def general(axes: Sequence[int], batch_axes: Sequence[int]) -> Term:
    """The term of a layer that sums over several axes of its input, such as ``DenseGeneral``.

    Args:
      axes: axes of the input that the leading axes of the kernel are summed with.
      batch_axes: axes of the input that have a kernel for every entry; refused.

    Raises (from the returned function):
      InputError: there are batch axes, or the adapter has other input and output axes.
    """

    def term(x: Array, kernel: FactoredKernel, gain: Array) -> Array:
        if batch_axes:
            raise InputError(
                f"{kernel.path} has batch axes, one kernel for every entry, which an adapter "
                "cannot follow; leave the layer out of the targets."
            )
        # As Flax does: in ascending order, whatever the order they are given in.
        order = sorted(axis % x.ndim for axis in axes)
        count = len(order)
        check_axes(kernel, gain, inputs=count)
        rows = jnp.moveaxis(x, order, range(-count, 0))
        y = low_rank_term(rows.reshape(*rows.shape[:-count], -1), kernel.a, kernel.b, gain)
        return y.reshape(*y.shape[:-1], *kernel.shape[count:])

    return term


def einsum(equation: str) -> Term:
    """The term of a layer that computes ``einsum(equation, x, W)``, such as ``Einsum``.

    Raises (from the returned function):
      InputError: the axes of the kernel are not those summed over, followed by those of the
        output, or the adapter has other input and output axes.
    """
    operands, output = equation.replace(" ", "").split("->")
    left, right = operands.split(",")
    inputs = "".join(c for c in right if c not in output)
    outputs = "".join(c for c in right if c in output)
    is_matrix = _is_matrix(left, right, inputs, outputs)
    rank = next(letter for letter in _LETTERS if letter not in equation)
    hidden = "".join(c for c in left if c not in inputs) + rank

    def term(x: Array, kernel: FactoredKernel, gain: Array) -> Array:
        if not is_matrix:
            raise InputError(
                f"The einsum {equation!r} of {kernel.path} is no product with a matrix: the axes "
                "of its kernel must be those summed over, followed by those of the output; leave "
                "the layer out of the targets."
            )
        count = len(inputs)
        check_axes(kernel, gain, inputs=count)
        a, b, factor = (z.astype(x.dtype) for z in (kernel.a, kernel.b, gain))
        a, b = a.reshape(*kernel.shape[:count], -1), b.reshape(-1, *kernel.shape[count:])
        h = jnp.einsum(f"{left},{inputs}{rank}->{hidden}", x, a)
        h = h * factor.reshape((1,) * (h.ndim - 1) + factor.shape)
        return jnp.einsum(f"{hidden},{rank}{outputs}->{output}", h, b)

    return term


def _is_matrix(left: str, right: str, inputs: str, outputs: str) -> bool:
    """Whether the kernel's axes are those summed over with the input, then those of the output."""
    letters = set(right)
    in_order = right == inputs + outputs and right.isalpha() and len(letters) == len(right)
    return in_order and letters & set(left) == set(inputs)


def convolution_error(path: str) -> InputError:
    """The error for an adapter on a convolution."""
    return InputError(
        f"{path} is a convolution, which cannot be adapted; leave it out of the targets."
    )


def check_axes(kernel: FactoredKernel, gain: Array, *, inputs: int) -> None:
    """Check that the factors have the input and output axes that the layer has.

    Args:
      kernel: an `AdaptedKernel` as the layer sees it, without an axis of stacked layers.
      gain: its multipliers, ``[R]``.
      inputs: how many leading axes of the kernel the layer sums over.

    Raises:
      InputError: they have others.
    """
    sizes = math.prod(kernel.shape[:inputs]), math.prod(kernel.shape[inputs:])
    if {kernel.a.shape[1:], kernel.b.shape[:1], gain.shape} != {gain.shape}:
        raise InputError(
            f"The model has transformed the parameters of {kernel.path}, which its factors cannot "
            'follow; stack layers along the first axis (variable_axes={"params": 0}), and '
            "transpose where the kernel is used."
        )
    if (kernel.a.shape[0], kernel.b.shape[1]) != sizes:
        raise InputError(
            f"{kernel.path} is {sizes[0]} x {sizes[1]}, but its adapter is {kernel.a.shape[0]} x "
            f"{kernel.b.shape[1]}; give make_spec input_axes={{{kernel.path!r}: {inputs}}}."
        )


def drop(x: Array, key: Array, rate: float) -> Array:
    """Inverted dropout: zero entries of ``x`` at this rate and scale up the others."""
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype))
