"""The devices a cohort is spread over: a mesh ``clients x model``, and what lives where on it.

Each position on the axis ``clients`` trains its part of the cohort. Along ``model`` the base is cut
in parts, and the compiler divides each of its products where the base is cut (``model`` as in
tensor parallelism; a device stores as little of it as under FSDP). Devices may belong to several
processes: every process then holds the same values and places its own parts of them.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.target import current_target
from fedjax_lora.core.trees import Tree
from fedjax_lora.core.types import Params, PyTree

AXIS, MODEL = "clients", "model"

CUT_AXES: Mapping[str, tuple[int, ...]] = {"kernel": (-1, -2), "embedding": (-2, -1)}
"""Which axis of a parameter is cut, in order of preference: outputs; rows of a table. All other
parameters are vectors, and whole on every device."""


def client_mesh(devices: int | None = None, shape: Sequence[int] = (-1, 1)) -> Mesh:
    """The mesh ``clients x model`` over the first ``devices`` of the target (all by default).

    Args:
      devices: how many.
      shape: sizes of the two axes; -1 stands for all devices that are left.

    Raises:
      InputError: sizes that do not multiply to the number of devices, or too few devices.
    """
    target = current_target()
    available = target.devices
    used = available[:devices]
    if devices is not None and not 1 <= devices <= len(available):
        raise InputError(f"devices is {devices}, but there are 1 to {len(available)}.")
    if len(used) < len(available) and target.processes > 1:
        raise InputError(
            f"devices is {devices}, but a run of {target.processes} processes uses all "
            f"{len(available)} devices; leave it out."
        )
    # Auto: the round around the `shard_map` is written without a thought of where its arrays are.
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(_sizes(shape, len(used)), (AXIS, MODEL), devices=used, axis_types=auto)


def _sizes(shape: Sequence[int], devices: int) -> tuple[int, ...]:
    known = math.prod(size for size in shape if size > 0)
    sizes = tuple(devices // known if size < 0 else size for size in shape)
    if math.prod(sizes) != devices:
        asked = " x ".join(map(str, shape))
        raise InputError(
            f"A mesh of {asked} (clients x model) does not use {devices} device(s) exactly; choose "
            "sizes whose product that is, or -1 for one of them."
        )
    return sizes


def everywhere(mesh: Mesh | None) -> object:
    """Where shared arrays live: the sharding over the whole mesh, or else the default device."""
    if mesh is None:
        return current_target().own_device
    return NamedSharding(mesh, PartitionSpec())


def place(tree: Tree, where: PyTree) -> Tree:
    """Arrays at a device or a sharding, or at a tree of them; they are the same on all processes.

    (`jax.device_put` would compare them between processes, array by array.)
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    if isinstance(where, Sharding):
        where = jax.tree.map(lambda x: where, tree)
    return jax.tree.map(_put, tree, where)


def _put(x: Any, where: Sharding) -> jax.Array:
    if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(where, x.ndim):
        return x
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=where)(x)  # no process has all of its values
    values = np.asarray(x)
    return jax.make_array_from_callback(values.shape, where, lambda part: values[part])


def base_sharding(base: Params, mesh: Mesh | None) -> PyTree:
    """Where each array of a base lives, see `parameter_sharding`.

    Args:
      base: nested dictionaries of arrays, of tuples of arrays, or of codes.
      mesh: the mesh, if there is one.

    Raises:
      InputError: the axis ``model`` divides neither inputs nor outputs of a kernel.
    """
    where = in_parts(mesh)
    if where is None:
        return jax.tree.map(lambda x: everywhere(mesh), base)
    return trees.nested(
        {
            path: jax.tree.map(lambda x, path=path, where=where: where(path, x.shape), leaf)
            for path, leaf in trees.flat(base).items()
        }
    )


def in_parts(mesh: Mesh | None) -> Callable[[str, Sequence[int]], NamedSharding] | None:
    """Where a parameter lives, by its path and shape, if the mesh cuts the base; else None."""
    if mesh is None or mesh.shape[MODEL] == 1:
        return None
    return functools.partial(parameter_sharding, mesh=mesh)


def parameter_sharding(path: str, shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Where a parameter lives: kernels and tables of the base are cut along ``model``.

    Args:
      path: of the parameter, joined by ``/``.
      shape: of it, or of its codes.
      mesh: the mesh.

    Raises:
      InputError: the axis ``model`` divides neither inputs nor outputs of a kernel.
    """
    axes = () if path.startswith("head/") else CUT_AXES.get(path.rpartition("/")[2], ())
    size = mesh.shape[MODEL]
    fitting = [axis for axis in axes if shape[axis] % size == 0]
    if axes and not fitting:
        raise InputError(
            f"A mesh with {size} devices on the axis model cannot divide this base, {path} is "
            f"{' x '.join(map(str, shape))}; choose a divisor of its widths."
        )
    spec: list[str | None] = [None] * len(shape)
    if fitting:
        spec[fitting[0]] = MODEL
    return NamedSharding(mesh, PartitionSpec(*spec))
