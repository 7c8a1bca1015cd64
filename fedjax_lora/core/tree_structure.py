"""Comparison of pytrees by structure: paths, shapes and dtypes of their leaves."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.types import HasShape, PyTree


def check_same_structure(subject: str, tree: PyTree, expected: PyTree) -> None:
    """Refuse a tree whose paths, shapes or dtypes differ from the expected ones.

    The check runs on the host, also while a function is being traced.

    Args:
      subject: what the tree is, for the message.
      tree: arrays, or any leaves with a shape and a dtype.
      expected: a tree of the required structure.

    Raises:
      InputError: lists all differences.
    """
    raise_all(subject, structure_differences(tree, expected))


def structure_differences(tree: PyTree, expected: PyTree) -> Iterator[str]:
    """Yield every path that is missing, not expected, or of another shape or dtype.

    >>> import numpy as np
    >>> list(structure_differences({"x": np.zeros((2, 3))}, {"x": np.zeros(2), "y": np.zeros(1)}))
    ['x is float32[2,3] but must be float32[2]', 'y is missing']

    Args:
      tree: arrays, or any leaves with a shape and a dtype.
      expected: a tree of the required structure.
    """
    described = describe_leaves(tree, _describe_traced)
    yield from compare_descriptions(described, describe_leaves(expected, _describe_traced))


def compare_descriptions(tree: Mapping[str, str], expected: Mapping[str, str]) -> Iterator[str]:
    """Yield the differences between two results of `describe_leaves`."""
    for path, description in expected.items():
        if path not in tree:
            yield f"{path} is missing"
        elif tree[path] != description:
            yield f"{path} is {tree[path]} but must be {description}"
    yield from (f"{path} is not expected" for path in tree if path not in expected)


def describe_leaves(tree: PyTree, describe: Callable[[HasShape], str]) -> dict[str, str]:
    """Describe every leaf, by its ``/``-joined path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): describe(leaf)
        for path, leaf in leaves
    }


def describe_array(array: HasShape) -> str:
    """Dtype and shape of an array, or of any object with both.

    >>> import numpy as np
    >>> describe_array(np.zeros((2, 3), np.int32))
    'int32[2,3]'
    """
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _describe_traced(leaf: Any) -> str:
    """Describe a leaf as a trace sees it, where NumPy's float64 becomes float32."""
    return describe_array(jax.typeof(leaf)) if hasattr(leaf, "shape") else type(leaf).__name__
