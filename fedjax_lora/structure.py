"""Whether two trees of arrays are of one structure, told by the paths in which they differ."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from fedjax_lora.core.errors import raise_all


def differences(got: Any, want: Any) -> Iterator[str]:
    """Every path that is missing, not expected, or of another shape or type.

    >>> import numpy as np
    >>> list(differences({"x": np.zeros((2, 3))}, {"x": np.zeros(2), "y": np.zeros(1)}))
    ['x is float32[2,3] but must be float32[2]', 'y is missing']

    Args:
      got: arrays, or anything with a shape and a dtype.
      want: likewise.
    """
    yield from unlike(by_path(got, _kind), by_path(want, _kind))


def unlike(found: Mapping[str, str], expected: Mapping[str, str]) -> Iterator[str]:
    """The differences between what is said of the leaves of two trees, see `by_path`."""
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


def by_path(tree: Any, say: Callable[[Any], str]) -> dict[str, str]:
    """What a function says of every leaf, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): say(leaf) for path, leaf in leaves
    }


def kind_of(array: Any) -> str:
    """Type and shape of an array, or of anything with both.

    >>> import numpy as np
    >>> kind_of(np.zeros((2, 3), np.int32))
    'int32[2,3]'
    """
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _kind(leaf: Any) -> str:
    """That which the leaf has in a trace, where a float64 of NumPy is a float32."""
    return kind_of(jax.typeof(leaf)) if hasattr(leaf, "shape") else type(leaf).__name__
