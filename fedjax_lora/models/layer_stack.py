"""Stacks of identical layers: one layer module, run many times.

The variables of the module have a leading layer axis, so that linear algebra on kernels can be
batched over layers, and a loop compiles the layer once. Without a loop a stack is faster: a loop
writes what each layer keeps for the backward pass into one array, and reads it again. On a CPU it
is also faster to avoid the copies of slicing stacked kernels: `split_layers` turns a stacked
parameter into a tuple with one array per layer, with the same values and path.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import flax.linen as nn
import jax
import numpy as np

from fedjax_lora.core import trees
from fedjax_lora.core.target import current_target
from fedjax_lora.core.types import Params, PyTree

Module = TypeVar("Module", bound=nn.Module)
Step = Callable[[Module, Any, bool], Any]


MOST_UNROLLED = 12
"""Layers that are run without a loop on an accelerator, at most: what the TPU compiler needs grows
with them, to half a minute for each shape of a step at 12 layers of BERT-base."""


def layers_per_step(count: int, scan_unroll: int | None) -> int:
    """Layers per loop step: all where there are few or on a CPU, else one.

    Args:
      count: number of layers.
      scan_unroll: the number that the config requests; None chooses by the target.
    """
    if scan_unroll is not None:
        return min(scan_unroll, count)
    return count if current_target().is_cpu or count <= MOST_UNROLLED else 1


def is_unrolled(count: int, scan_unroll: int | None) -> bool:
    """Whether layers run without a loop, see `layers_per_step`."""
    return layers_per_step(count, scan_unroll) == count


def split_layers(params: Params, stacked: Callable[[str], bool]) -> Params:
    """Replace stacked parameters by tuples with one array (or quantized kernel) per layer.

    On a CPU the tuples share the memory of the stacked arrays.

    Args:
      params: nested dictionaries of arrays, or of `jax.ShapeDtypeStruct` for them.
      stacked: whether the parameter at a path has a leading layer axis.
    """
    leaves = trees.flat(params)
    return trees.nested({path: _apart(x) if stacked(path) else x for path, x in leaves.items()})


def _apart(stacked: Any) -> tuple[Any, ...]:
    """Split an array, or the arrays of a quantized kernel, into layers."""
    # Slices of a NumPy array are views; slices of a JAX array would be copies.
    arrays = jax.tree.map(lambda x: x if _is_shape(x) else np.asarray(x), stacked)
    layer = lambda n: jax.tree.map(lambda x: _layer(x, n), arrays)  # noqa: E731
    return tuple(map(layer, range(jax.tree.leaves(arrays)[0].shape[0])))


def _is_shape(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def _layer(x: Any, n: int) -> Any:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if _is_shape(x) else x[n]


def run(
    layer: Module,
    step: Step[Module],
    x: PyTree,
    *,
    count: int,
    scan_unroll: int | None = None,
    shared: bool = False,
    remat: bool = False,
) -> PyTree:
    """Apply `count` layers to `x`.

    Args:
      layer: bound to its parent; has the variables of all layers.
      step: ``(layer, x, last) -> x``, applies one layer. ``last`` is True for the last layer of an
        unrolled stack, which may omit results that are not used.
      x: a pytree of arrays; in a loop every layer must return the shapes and dtypes it takes.
      count: number of layers.
      scan_unroll: layers per loop step, see `layers_per_step`.
      shared: whether all layers have the same variables, without a layer axis.
      remat: recompute each layer in the backward pass.

    Returns:
      The result of the last layer.
    """
    if layer.is_initializing() or not is_unrolled(count, scan_unroll):
        unroll = layers_per_step(count, scan_unroll)
        return _loop(layer, step, x, count, unroll, shared, remat)
    for at in range(count):
        x = _one(layer, step, x, at, at == count - 1, shared, remat)
    return x


def _one(layer: Any, step: Step, x: Any, at: int, last: bool, shared: bool, remat: bool) -> Any:
    call = lambda layer, x: step(layer, x, last)  # noqa: E731
    call = nn.remat(call) if remat else call
    if shared:
        return call(layer, x)
    take = lambda variables: jax.tree.map(  # noqa: E731
        lambda leaf: leaf[at], variables, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    return nn.map_variables(lambda layer: call(layer, x), True, trans_in_fn=take)(layer)


def _loop(
    layer: Any, step: Step, x: Any, count: int, unroll: int, shared: bool, remat: bool
) -> Any:
    call = lambda layer, x: (step(layer, x, False), None)  # noqa: E731
    # A loop prevents XLA from merging the recomputation with the original; unrolled layers do not.
    call = nn.remat(call, prevent_cse=unroll > 1) if remat else call
    options: dict[str, Any] = {"length": count, "unroll": unroll}
    if shared:
        options |= {"variable_broadcast": True, "split_rngs": {"params": False, True: True}}
    else:
        options |= {"variable_axes": {True: 0}, "split_rngs": {True: True}}
    return cast(Any, nn.scan(call, **options))(layer, x)[0]
