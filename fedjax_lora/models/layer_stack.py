"""One layer module, run many times.

Its variables have a leading layer axis, so that the server's linear algebra is batched over layers
and, in a loop, one compiled layer serves all. A CPU wants no loop, and neither the copies that
cutting a layer's kernels out of a stacked array makes: for it, `split_layers` makes a parameter a
tuple with one array per layer, the same values under the same path.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import flax.linen as nn
import jax
import numpy as np

from fedjax_lora.core import trees

Module = TypeVar("Module", bound=nn.Module)
Step = Callable[[Module, Any, bool], Any]


def layers_per_step(count: int, scan_unroll: int | None) -> int:
    """Layers per loop step: a CPU is a fifth faster without a loop, accelerators want one.

    Args:
      count: number of layers.
      scan_unroll: what the config asks for; None chooses by backend.
    """
    if scan_unroll is not None:
        return min(scan_unroll, count)
    return count if jax.default_backend() == "cpu" else 1


def is_unrolled(count: int, scan_unroll: int | None) -> bool:
    """Whether layers run without a loop, see `layers_per_step`."""
    return layers_per_step(count, scan_unroll) == count


def split_layers(params: Mapping[str, Any], stacked: Callable[[str], bool]) -> dict[str, Any]:
    """Parameters with tuples, one array (or its codes) per layer, instead of stacked arrays.

    On a CPU they share the stacked arrays' memory.

    Args:
      params: nested dictionaries of arrays.
      stacked: whether the parameter at a path has a leading layer axis.
    """
    leaves = trees.flat(params)
    return trees.nested({path: _apart(x) if stacked(path) else x for path, x in leaves.items()})


def _apart(stacked: Any) -> tuple[Any, ...]:
    """The layers of an array, or of the arrays that a kernel's codes are kept in."""
    # Parts of a NumPy array are views, parts of a JAX array would be copies.
    here = jax.tree.map(np.asarray, stacked)
    layer = lambda n: jax.tree.map(lambda x: x[n], here)  # noqa: E731
    return tuple(map(layer, range(len(jax.tree.leaves(here)[0]))))


def run(
    layer: Module,
    step: Step[Module],
    x: Any,
    *,
    count: int,
    scan_unroll: int | None = None,
    shared: bool = False,
    remat: bool = False,
) -> Any:
    """What `count` layers make of `x`.

    Args:
      layer: bound to its parent; holds the variables of all layers.
      step: ``(layer, x, last) -> x`` of one layer. ``last`` is true for the last layer of those
        that run without a loop, which may then leave out what nobody reads.
      x: arrays; in a loop every layer returns the shapes and dtypes it takes.
      count: number of layers.
      scan_unroll: layers per loop step, see `layers_per_step`.
      shared: all layers have the same variables, without a layer axis.
      remat: recompute each layer in the backward pass.
    """
    if layer.is_initializing() or not is_unrolled(count, scan_unroll):
        unroll = layers_per_step(count, scan_unroll)
        return _loop(layer, step, x, count, unroll, shared, remat)
    for at in range(count):
        x = _one(layer, step, x, at, at == count - 1, shared, remat)
    return x


def _one(layer: Any, step: Step, x: Any, at: int, last: bool, shared: bool, remat: bool) -> Any:
    call = lambda own, x: step(own, x, last)  # noqa: E731
    call = nn.remat(call) if remat else call
    if shared:
        return call(layer, x)
    take = lambda variables: jax.tree.map(  # noqa: E731
        lambda leaf: leaf[at], variables, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    return nn.map_variables(lambda own: call(own, x), True, trans_in_fn=take)(layer)


def _loop(
    layer: Any, step: Step, x: Any, count: int, unroll: int, shared: bool, remat: bool
) -> Any:
    call = lambda own, x: (step(own, x, False), None)  # noqa: E731
    # A loop keeps XLA from merging the recomputation with the original; unrolled layers do not.
    call = nn.remat(call, prevent_cse=unroll > 1) if remat else call
    options: dict[str, Any] = {"length": count, "unroll": unroll}
    if shared:
        options |= {"variable_broadcast": True, "split_rngs": {"params": False, True: True}}
    else:
        options |= {"variable_axes": {True: 0}, "split_rngs": {True: True}}
    return cast(Any, nn.scan(call, **options))(layer, x)[0]
