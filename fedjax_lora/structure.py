"""Whether two trees of arrays are of one structure, told by the paths in which they differ."""

from collections.abc import Iterator
from typing import Any

import jax

from fedjax_lora.errors import raise_all


def differences(got: Any, want: Any) -> Iterator[str]:
    """Every path that is missing, not expected, or of another shape or type.

    >>> import numpy as np
    >>> list(differences({"x": np.zeros((2, 3))}, {"x": np.zeros(2), "y": np.zeros(1)}))
    ['x is float32[2,3] but must be float32[2]', 'y is missing']

    Args:
      got: arrays, or anything with a shape and a dtype.
      want: likewise.
    """
    found, expected = _described(got), _described(want)
    for path, what in expected.items():
        if path not in found:
            yield f"{path} is missing"
        elif found[path] != what:
            yield f"{path} is {found[path]} but must be {what}"
    yield from (f"{path} is not expected" for path in found if path not in expected)


def need_same(what: str, got: Any, want: Any) -> None:
    """Refuse a tree of another structure than it must have; on the host, also while tracing.

    Raises:
      InputError: with all differences.
    """
    raise_all(what, differences(got, want))


def _described(tree: Any) -> dict[str, str]:
    """The type and shape of every leaf by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _kind(leaf) for path, leaf in leaves
    }


def _kind(leaf: Any) -> str:
    if not hasattr(leaf, "shape"):
        return type(leaf).__name__
    aval = jax.typeof(leaf)
    return f"{aval.dtype}[{','.join(map(str, aval.shape))}]"
