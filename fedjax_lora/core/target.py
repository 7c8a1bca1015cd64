"""What programs are compiled for: the devices of this process, or a target that is not at hand.

Whoever decides by the hardware (how many layers a loop takes at once, how many clients train at
once, which devices a mesh has) asks `current_target` and not the process. Inside the context
`compiling_for` that is another target, for which programs can be lowered and compiled but not run.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

from fedjax_lora.core.chips import chip_of_kind

_PLATFORMS = {"cuda": "gpu", "rocm": "gpu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Devices that a program is compiled for.

    Attributes:
      platform: ``cpu``, ``gpu`` or ``tpu``.
      kind: what JAX calls one of the devices.
      devices: all of them, as `jax.Device`; those of another target cannot hold arrays.
      memory: bytes that a program can use on one of them; None if that is not known.
      flops: operations a second in bfloat16 products at its peak; None if that is not known.
      processes: that run the program together.
    """

    platform: str
    kind: str
    devices: tuple[Any, ...]
    memory: int | None = None
    flops: float | None = None
    processes: int = 1

    @property
    def is_cpu(self) -> bool:
        """Whether the devices are processors, with caches and without matrix units."""
        return self.platform == "cpu"

    @property
    def own_device(self) -> Any:
        """The first device of this process."""
        index = jax.process_index()
        return next((d for d in self.devices if d.process_index == index), self.devices[0])


def target_of(devices: tuple[Any, ...], memory: int | None = None) -> Target:
    """Describe devices of one kind.

    Args:
      devices: the devices, at least one.
      memory: bytes that a program can use on one of them; by default those of its kind.
    """
    first, platform = devices[0], str(devices[0].platform)
    chip = chip_of_kind(first.device_kind)
    return Target(
        platform=_PLATFORMS.get(platform) or platform,
        kind=first.device_kind,
        devices=devices,
        memory=memory or (chip.memory if chip else None),
        flops=chip.flops if chip else None,
        processes=len({device.process_index for device in devices}),
    )


def current_target() -> Target:
    """Return what programs are compiled for now: by default the devices of this process."""
    return _TARGET.get() or _of_process()


@contextlib.contextmanager
def compiling_for(target: Target | None) -> Iterator[None]:
    """Decide by the hardware of ``target`` inside the context; None changes nothing.

    Functions that were traced outside must not be used inside, nor the other way round.
    """
    token = _TARGET.set(target or _TARGET.get())
    try:
        yield
    finally:
        _TARGET.reset(token)


_TARGET: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


@functools.cache
def _of_process() -> Target:
    """Describe the devices of this process, and of those that it runs with."""
    devices = tuple(jax.devices())
    target = target_of(devices, _usable_bytes(jax.local_devices()[0]))
    return dataclasses.replace(target, processes=jax.process_count())


def _usable_bytes(device: Any) -> int | None:
    """Return the bytes that a program can use on a device, where the device can tell."""
    if device.platform == "cpu":
        return None
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return (device.memory_stats() or {}).get("bytes_limit")
    return None
