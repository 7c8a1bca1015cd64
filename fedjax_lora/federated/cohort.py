"""How a cohort is executed: one client after another, together, in waves, on many devices.

All modes compute the same; pick by what the machine likes. ``loop`` is the slow, obvious reference.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_lora.core.types import Params
from fedjax_lora.federated.local_training import Clients
from fedjax_lora.federated.sharding import AXIS

Mode = Literal["loop", "vmap", "sharded"]

Work = Callable[[Params, Any, Clients, jax.Array], Any]
"""What is done with a wave of clients, ``(base, data, clients, rate)`` to leaves ``[w, ...]``."""


def default_clients_per_step(cohort: int) -> int:
    """Clients trained at once: one on a CPU, whose caches hold no more; all on an accelerator."""
    return 1 if jax.default_backend() == "cpu" else cohort


def padded_size(cohort: int, *, mode: Mode, clients_per_step: int, mesh: Mesh | None = None) -> int:
    """The cohort's size with absent clients added, so that devices and waves divide it.

    >>> padded_size(10, mode="vmap", clients_per_step=4)
    12
    """
    if mode == "loop":
        return cohort
    devices = mesh.shape[AXIS] if mode == "sharded" and mesh is not None else 1
    local = math.ceil(cohort / devices)
    return devices * math.ceil(local / min(clients_per_step, local)) * min(clients_per_step, local)


def in_steps_of(work: Work, clients_per_step: int) -> Work:
    """Work on ``clients_per_step`` clients at a time inside one compiled program."""

    def run(base: Any, data: Any, clients: Clients, rate: jax.Array) -> Any:
        count = clients.rank.shape[0]
        if clients_per_step >= count:
            return work(base, data, clients, rate)
        split = jax.tree.map(
            lambda x: x.reshape(count // clients_per_step, clients_per_step, *x.shape[1:]), clients
        )
        out = jax.lax.map(lambda part: work(base, data, part, rate), split)
        return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), out)

    return run


def on_mesh(work: Work, mesh: Mesh) -> Work:
    """Give each place on the axis ``clients`` its part of the cohort; data are replicated.

    Where the base is cut along ``model`` is not said here: the compiler sees it in the array.
    """
    spec, everywhere = PartitionSpec(AXIS), PartitionSpec()
    return jax.shard_map(
        work,
        mesh=mesh,
        in_specs=(everywhere, everywhere, spec, everywhere),
        out_specs=spec,
        axis_names={name for name, size in mesh.shape.items() if name == AXIS or size == 1},
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


def execute(
    work: Work, *, mode: Mode, clients_per_step: int, mesh: Mesh | None = None
) -> Callable[..., Any]:
    """The same work on a whole cohort."""
    if mode == "loop":
        return one_by_one(work)
    if mode == "sharded":
        if mesh is None:
            raise ValueError("mode 'sharded' needs a mesh")
        return on_mesh(in_steps_of(work, clients_per_step), mesh)
    return in_steps_of(work, clients_per_step)
