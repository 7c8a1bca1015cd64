"""Pytree arithmetic, and nested dictionaries by ``/``-joined paths."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp

from fedjax_lora.core.types import Array, Params, PyTree

Tree = TypeVar("Tree")


def flat(params: Params) -> dict[str, PyTree]:
    """Flatten nested dictionaries into one dictionary with ``/``-joined paths.

    >>> flat({"x": {"kernel": 1, "bias": 2}})
    {'x/kernel': 1, 'x/bias': 2}
    """
    leaves = {}
    for name, child in params.items():
        if isinstance(child, Mapping):
            leaves |= {f"{name}/{path}": leaf for path, leaf in flat(child).items()}
        else:
            leaves[name] = child
    return leaves


def nested(leaves: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Build nested dictionaries from ``/``-joined paths, the inverse of `flat`.

    >>> nested({"x/kernel": 1, "x/bias": 2})
    {'x': {'kernel': 1, 'bias': 2}}
    """
    tree: dict[str, PyTree] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def replace(params: Params, leaves: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Replace the leaves at the given ``/``-joined paths; arrays are shared, not copied."""
    return nested(flat(params) | dict(leaves))


def expand(weight: Array, like: Array) -> Array:
    """Append axes of size one to ``weight`` until it broadcasts against ``like``."""
    return weight.reshape(weight.shape + (1,) * (like.ndim - weight.ndim))


def safe_divide(numerator: Array, denominator: Array, otherwise: Array) -> Array:
    """Divide, with the result ``otherwise`` where the denominator is 0."""
    zero = denominator == 0
    return jnp.where(zero, otherwise, numerator / jnp.where(zero, 1, denominator))


def weighted_mean(stack: Tree, weight: Array, otherwise: Tree) -> Tree:
    """Weighted mean over a leading client axis.

    Clients with weight 0 have no influence, even if their values are not finite.

    Args:
      stack: leaves ``[c, ...]``.
      weight: ``[c]``, not negative; the weights need not sum to one.
      otherwise: leaves ``[...]``, the result if all weights are 0.
    """

    def mean(x: Array, old: Array) -> Array:
        w = expand(weight, x).astype(x.dtype)
        total = jnp.sum(jnp.where(w > 0, w * x, 0), axis=0)
        return safe_divide(total, jnp.sum(w, axis=0), old)

    return jax.tree.map(mean, stack, otherwise)


def where(mask: Array, new: Tree, old: Tree) -> Tree:
    """Select ``new`` where the mask over the leading axis is true, else ``old``, for every leaf."""
    return jax.tree.map(lambda x, y: jnp.where(expand(mask, x), x, y), new, old)


def square_norm(tree: PyTree) -> Array:
    """Sum of squares of all entries of all leaves."""
    return sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)), start=jnp.zeros(()))


def size_bytes(tree: PyTree) -> int:
    """Bytes of all leaves, which may be abstract (`jax.ShapeDtypeStruct`)."""
    return sum(-(-x.size * jax.dtypes.itemsize_bits(x.dtype) // 8) for x in jax.tree.leaves(tree))
