"""One function for every layer of a stack: one by one on a CPU, batched on accelerators, on a mesh.

Batched LAPACK calls of the CPU backend deadlock in jaxlib 0.10.2 (two independent batched QR or
SVD calls wait for the thread pool they occupy); single calls do not. One by one, the layers also
need the memory of one at a time.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec


def spread_over(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """While a function is traced in here, layers are spread over the mesh; its arrays are there."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def map_layers(fn: Callable[..., Any], *arrays: Any, axis: int = 0) -> Any:
    """``fn`` of each layer's arrays.

    Under `spread_over` a mesh each device takes ``ceil(L / devices)`` of the layers. Arrays that
    are sharded along another axis (clients) are exchanged so that each device gets its layers of
    all clients.

    Args:
      fn: of arrays without the layer axis, to arrays (or a tree of them).
      *arrays: with `L` at ``axis``.
      axis: of the layers.

    Returns:
      What ``fn`` returns, with `L` in front.
    """
    mesh = jax.sharding.get_abstract_mesh()
    count = arrays[0].shape[axis]
    # Inside a `shard_map` the mesh is manual: this device's share is all there is.
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types) or count == 1:
        return _on_one_device(fn, arrays, axis)
    return _on_mesh(fn, arrays, axis, mesh)


def _on_one_device(fn: Callable[..., Any], arrays: tuple[Any, ...], axis: int) -> Any:
    def one_by_one(*arrays: Any) -> Any:
        # Slices are taken inside the loop: with the axis moved to the front all would be copied.
        layer = lambda x, n: jax.lax.dynamic_index_in_dim(x, n, axis, keepdims=False)  # noqa: E731
        return jax.lax.map(
            lambda n: fn(*(layer(x, n) for x in arrays)), jnp.arange(arrays[0].shape[axis])
        )

    return jax.lax.platform_dependent(
        *arrays, cpu=one_by_one, default=jax.vmap(fn, in_axes=axis, out_axes=0)
    )


def _on_mesh(fn: Callable[..., Any], arrays: tuple[Any, ...], axis: int, mesh: AbstractMesh) -> Any:
    count = arrays[0].shape[axis]
    missing = -count % mesh.size  # layers of zeros, so that every device has as many

    def padded(x: Any) -> Any:
        return jnp.pad(x, [(0, missing * (n == axis)) for n in range(x.ndim)])

    mapped = jax.shard_map(
        lambda *mine: _on_one_device(fn, mine, axis),
        mesh=mesh,
        in_specs=PartitionSpec(*(None,) * axis, mesh.axis_names),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )
    return jax.tree.map(lambda x: x[:count], mapped(*map(padded, arrays)))
