"""Map a function over stacked layers: sequentially on a CPU, batched on accelerators, on a mesh.

Batched LAPACK calls of the CPU backend deadlock in jaxlib 0.10.2 (two independent batched QR or
SVD calls wait for the thread pool they occupy); single calls do not. A sequential map also needs
the memory of only one layer at a time.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from fedjax_lora.core.types import Array, PyTree


def spread_over(mesh: Mesh | None) -> contextlib.AbstractContextManager[object]:
    """Spread the layers of `map_layers` over a mesh, for functions traced inside the context.

    Args:
      mesh: the mesh on which the arrays live; None keeps every layer on one device.
    """
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def map_layers(fn: Callable[..., PyTree], *arrays: Array, axis: int = 0) -> PyTree:
    """Map ``fn`` over the layers of stacked arrays.

    Under `spread_over` a mesh each device takes ``ceil(L / devices)`` of the layers. Arrays that
    are sharded along another axis (clients) are exchanged so that each device gets its layers of
    all clients.

    Args:
      fn: takes one layer's arrays, without the layer axis, and returns a pytree of arrays.
      *arrays: stacked arrays, with `L` at ``axis``.
      axis: the layer axis.

    Returns:
      The results of ``fn``, stacked on a leading axis `L`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    count = arrays[0].shape[axis]
    # Inside a `shard_map` the mesh is manual, and the arrays are this device's share.
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types) or count == 1:
        return _on_one_device(fn, arrays, axis)
    return _on_mesh(fn, arrays, axis, mesh)


def _on_one_device(fn: Callable[..., Any], arrays: tuple[Any, ...], axis: int) -> Any:
    def one_by_one(*arrays: Any) -> Any:
        # Slicing inside the loop avoids the copy that moving the axis to the front would make.
        layer = lambda x, n: jax.lax.dynamic_index_in_dim(x, n, axis, keepdims=False)  # noqa: E731
        return jax.lax.map(
            lambda n: fn(*(layer(x, n) for x in arrays)), jnp.arange(arrays[0].shape[axis])
        )

    return jax.lax.platform_dependent(
        *arrays, cpu=one_by_one, default=jax.vmap(fn, in_axes=axis, out_axes=0)
    )


def _on_mesh(fn: Callable[..., Any], arrays: tuple[Any, ...], axis: int, mesh: AbstractMesh) -> Any:
    count = arrays[0].shape[axis]
    missing = -count % mesh.size  # layers of zeros, so that all devices have equally many

    def padded(x: Any) -> Any:
        return jnp.pad(x, [(0, missing * (n == axis)) for n in range(x.ndim)])

    mapped = jax.shard_map(
        lambda *shards: _on_one_device(fn, shards, axis),
        mesh=mesh,
        in_specs=PartitionSpec(*(None,) * axis, mesh.axis_names),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )
    return jax.tree.map(lambda x: x[:count], mapped(*map(padded, arrays)))
