"""How the clients of a cohort are executed: in a loop, vectorised, over many devices, or elsewhere.

All modes compute the same; choose by the hardware. ``loop`` is the slow, plain reference. In mode
``remote`` the clients are other machines, see `fedjax_lora.federated.remote`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import check_fields
from fedjax_lora.core.target import current_target
from fedjax_lora.core.types import Params
from fedjax_lora.federated.sharding import AXIS
from fedjax_lora.federated.training import Clients

Mode = Literal["loop", "vmap", "sharded", "remote"]

ClientsFn = Callable[[Params, Any, Clients, jax.Array], Any]
"""Work on some clients at once, ``(base, data, clients, rate)`` to leaves ``[w, ...]``."""

Report = Callable[..., object]
"""A host function that is told a round's outcome, ``(plan, metrics)``."""

Exchange = Callable[..., Any]
"""A host function that has a cohort trained elsewhere, ``Assignment -> Answers``; see
`fedjax_lora.federated.remote`."""


def default_clients_per_step(cohort: int) -> int:
    """Clients trained at once: one on a CPU, whose caches hold no more; all on an accelerator.

    A run chooses by the memory of the accelerator, see
    `fedjax_lora.runs.cost.clients_per_step.choose_clients_per_step`.
    """
    return 1 if current_target().is_cpu else cohort


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """How the clients of a cohort are executed.

    >>> Execution(clients_per_step=4).padded_size(10)
    12

    Attributes:
      mode: ``loop`` (one client after another, compiled for one), ``vmap`` (groups of clients in
        one compiled program), ``sharded`` (the same, spread over the devices of ``mesh``) or
        ``remote`` (by ``exchange``; the rest of a round is compiled apart, as in mode ``loop``).
      clients_per_step: clients trained at once on one device; None for `default_clients_per_step`.
      mesh: the devices, see `fedjax_lora.federated.client_mesh`; only used in mode ``sharded``.
      exchange: has the cohort trained elsewhere; only used in mode ``remote``.
      report: told the plan and the metrics of a round at its end, among them who was rejected and
        what the method has added to the base; only used in mode ``remote``.

    Raises:
      InputError: values of the wrong type, mode ``sharded`` without a mesh, mode ``remote`` without
        an exchange, or less than one client per step.
    """

    mode: Mode = "vmap"
    clients_per_step: int | None = None
    mesh: Mesh | None = None
    exchange: Exchange | None = None
    report: Report | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mode == "sharded" and self.mesh is None:
            raise InputError("Execution mode 'sharded' needs a mesh; make one with client_mesh().")
        if self.mode == "remote" and self.exchange is None:
            raise InputError(
                "Execution mode 'remote' needs an exchange, the function that has a cohort trained."
            )
        if self.clients_per_step is not None and self.clients_per_step < 1:
            raise InputError(
                f"Execution needs clients_per_step of at least 1, got {self.clients_per_step}."
            )

    @property
    def devices(self) -> int:
        """Devices that a cohort is spread over."""
        return self.mesh.shape[AXIS] if self.mode == "sharded" and self.mesh is not None else 1

    def padded_size(self, cohort: int) -> int:
        """The cohort's size with absent clients added, so that devices and groups divide it."""
        if self.mode in ("loop", "remote"):
            return cohort
        local = math.ceil(cohort / self.devices)
        group = min(self.clients_per_step or default_clients_per_step(local), local)
        return self.devices * math.ceil(local / group) * group


DEFAULT_EXECUTION = Execution()
"""Groups of clients in one compiled program on the default device."""


def execute(work: ClientsFn, execution: Execution) -> ClientsFn:
    """Extend work on a group of clients to a whole cohort, executed as ``execution`` says."""
    if execution.mode == "loop":
        return _one_by_one(work)
    grouped = _in_groups(work, execution.clients_per_step)
    if execution.mode == "sharded":
        assert execution.mesh is not None  # checked by `Execution`
        return _on_mesh(grouped, execution.mesh)
    return grouped


def _in_groups(work: ClientsFn, clients_per_step: int | None) -> ClientsFn:
    """Work on ``clients_per_step`` clients at a time inside one compiled program."""

    def run(base: Params, data: Any, clients: Clients, rate: jax.Array) -> Any:
        count = clients.rank.shape[0]
        group = clients_per_step or default_clients_per_step(count)
        if group >= count:
            return work(base, data, clients, rate)
        if count % group:
            raise InputError(
                f"A cohort of {count} clients per device cannot be trained {group} at a time; "
                "choose clients_per_step that divides it, or fill it up to Execution.padded_size."
            )
        split = jax.tree.map(lambda x: x.reshape(count // group, group, *x.shape[1:]), clients)
        out = jax.lax.map(lambda part: work(base, data, part, rate), split)
        return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), out)

    return run


def _on_mesh(work: ClientsFn, mesh: Mesh) -> ClientsFn:
    """Give each position on the mesh axis ``clients`` its part of the cohort; data are replicated.

    Where the base is cut along ``model`` is not stated here: the compiler reads it off the array.
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


def _one_by_one(work: ClientsFn) -> ClientsFn:
    """A Python loop over clients: the reference that the other modes are compared with."""
    single = jax.jit(work)

    def run(base: Params, data: Any, clients: Clients, rate: jax.Array) -> Any:
        def client(k: int) -> Clients:
            return jax.tree.map(lambda x: x[k : k + 1], clients)

        parts = [single(base, data, client(k), rate) for k in range(clients.rank.shape[0])]
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)

    return run
