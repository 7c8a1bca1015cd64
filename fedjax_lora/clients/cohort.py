"""How a cohort is executed: one client after another, together, in waves, on many devices.

All modes compute the same; pick by what the machine likes. ``loop`` is the slow, obvious reference.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_lora.clients.local import Clients
from fedjax_lora.types import Params

Mode = Literal["loop", "vmap", "sharded"]
AXIS = "clients"

Work = Callable[[Params, Any, Clients, jax.Array], Any]
"""What is done with a wave of clients, ``(base, data, clients, rate)`` to leaves ``[w, ...]``."""


def client_mesh(devices: int | None = None) -> Mesh:
    """A mesh with the one axis ``clients`` over the first ``devices`` (all by default)."""
    chosen = jax.devices()[:devices]
    # Auto: the round around the `shard_map` is written without a thought of where its arrays are.
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(chosen),), (AXIS,), devices=chosen, axis_types=auto)


def everywhere(mesh: Mesh | None) -> Any:
    """Where shared arrays live: on every device of the mesh, or on the default device."""
    return jax.devices()[0] if mesh is None else NamedSharding(mesh, PartitionSpec())


def default_wave(cohort: int) -> int:
    """Clients trained at once: one on a CPU, whose caches hold no more; all on an accelerator."""
    return 1 if jax.default_backend() == "cpu" else cohort


def padded_size(cohort: int, *, mode: Mode, wave: int, mesh: Mesh | None = None) -> int:
    """The cohort's size with absent clients added, so that devices and waves divide it.

    >>> padded_size(10, mode="vmap", wave=4)
    12
    """
    if mode == "loop":
        return cohort
    devices = mesh.shape[AXIS] if mode == "sharded" and mesh is not None else 1
    local = math.ceil(cohort / devices)
    return devices * math.ceil(local / min(wave, local)) * min(wave, local)


def in_waves(work: Work, wave: int) -> Work:
    """Work on ``wave`` clients at a time inside one compiled program."""

    def run(base: Any, data: Any, clients: Clients, rate: jax.Array) -> Any:
        count = clients.rank.shape[0]
        if wave >= count:
            return work(base, data, clients, rate)
        split = jax.tree.map(lambda x: x.reshape(count // wave, wave, *x.shape[1:]), clients)
        out = jax.lax.map(lambda part: work(base, data, part, rate), split)
        return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), out)

    return run


def on_mesh(work: Work, mesh: Mesh) -> Work:
    """Give each device its part of the cohort; base and data are replicated."""
    spec, everywhere = PartitionSpec(AXIS), PartitionSpec()
    return jax.shard_map(
        work,
        mesh=mesh,
        in_specs=(everywhere, everywhere, spec, everywhere),
        out_specs=spec,
        check_vma=False,
    )


def one_by_one(work: Work) -> Work:
    """A Python loop over clients: the reference the other modes are compared with."""
    single = jax.jit(work)

    def run(base: Any, data: Any, clients: Clients, rate: jax.Array) -> Any:
        def client(k: int) -> Clients:
            return jax.tree.map(lambda x: x[k : k + 1], clients)

        parts = [single(base, data, client(k), rate) for k in range(clients.rank.shape[0])]
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)

    return run


def execute(work: Work, *, mode: Mode, wave: int, mesh: Mesh | None = None) -> Callable[..., Any]:
    """The same work on a whole cohort."""
    if mode == "loop":
        return one_by_one(work)
    if mode == "sharded":
        if mesh is None:
            raise ValueError("mode 'sharded' needs a mesh")
        return on_mesh(in_waves(work, wave), mesh)
    return in_waves(work, wave)
