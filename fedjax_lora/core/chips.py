"""The kinds of accelerators that programs can be compiled for, and the words that name them.

Nothing here imports JAX: a wrong word is answered at once.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from fedjax_lora.core.errors import InputError, unknown

GIB = 2**30

TWO_DIMENSIONS = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
THREE_DIMENSIONS = (
    "1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8",
)  # fmt: skip
"""Slices of Cloud TPU by the sizes of their torus, as its documentation lists them."""

GPUS_PER_HOST = 8
"""GPUs of one kind in a host, at most; more of them are several full hosts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A kind of accelerator.

    Attributes:
      platform: its platform in JAX.
      kind: what JAX calls the device.
      memory: bytes that a program can use on one.
      flops: operations a second in bfloat16 products, without sparsity, from the maker's sheet.
      cycle_flops: the same in one cycle of the clock that the TPU compiler counts with; 0 for GPUs,
        whose compiler counts none.
      topologies: the slices that can be rented; none for GPUs, which are counted.
      cores: multiprocessors of a GPU.
      bandwidth: bytes a second between a GPU and its memory.
      device_memory: bytes of memory on a GPU, of which JAX takes three quarters.
      cached: bytes of a GPU's second-level cache.
    """

    platform: Literal["tpu", "gpu"]
    kind: str
    memory: int
    flops: float
    cycle_flops: int = 0
    topologies: tuple[str, ...] = ()
    cores: int = 0
    bandwidth: float = 0.0
    device_memory: int = 0
    cached: int = 0

    @property
    def clock(self) -> float:
        """Cycles a second at which the peak is reached."""
        return self.flops / self.cycle_flops


def _hopper(kind: str, device_memory: int, bandwidth: float) -> Chip:
    """An SXM card of NVIDIA's Hopper generation."""
    return Chip(
        platform="gpu",
        kind=kind,
        # JAX reserves three quarters of the card (XLA_PYTHON_CLIENT_MEM_FRACTION changes it).
        memory=device_memory * 3 // 4,
        flops=989e12,
        cores=132,
        bandwidth=bandwidth,
        device_memory=device_memory,
        cached=50 * 2**20,
    )


CHIPS: Mapping[str, Chip] = {
    "v5e": Chip(
        platform="tpu",
        kind="TPU v5 lite",
        memory=int(15.75 * GIB),
        flops=197e12,
        cycle_flops=4 * 128 * 128 * 2,
        topologies=TWO_DIMENSIONS,
    ),
    "v5p": Chip(
        platform="tpu",
        kind="TPU v5",
        memory=int(95.73 * GIB),
        flops=459e12,
        cycle_flops=8 * 128 * 128 * 2,
        topologies=THREE_DIMENSIONS,
    ),
    "v6e": Chip(
        platform="tpu",
        kind="TPU v6 lite",
        memory=int(31.24 * GIB),
        flops=918e12,
        cycle_flops=4 * 256 * 256 * 2,
        topologies=TWO_DIMENSIONS,
    ),
    "h100": _hopper("NVIDIA H100 80GB HBM3", 84_942_979_072, 3.35e12),
    "h200": _hopper("NVIDIA H200 141GB HBM3e", 151_397_597_184, 4.8e12),
}
"""Chips by the word that names them.

Memory of TPUs: what their compiler says when a program does not fit. Peaks and bandwidths: the
pages "TPU v5e", "TPU v5p" and "TPU v6e" of Cloud TPU's documentation, and NVIDIA's data sheets of
H100 and H200 (SXM, dense). Operations in a cycle: number and size of the matrix units on these
pages. A product of two bfloat16 matrices 4096 x 4096 is compiled (libtpu 0.0.52) to 97 % of the
peak on v5e, 96 % on v5p and 87 % on v6e by the compiler's own count of cycles; no chip was timed.
"""


class TargetSpec(NamedTuple):
    """The words of a target, checked.

    Attributes:
      chip: name in `CHIPS`.
      topology: of a TPU slice, or ``"1x1xN"`` for N GPUs of a host.
      count: number of chips.
    """

    chip: str
    topology: str
    count: int

    def __str__(self) -> str:
        """The words that name the target."""
        gpu = not CHIPS[self.chip].topologies
        return f"{self.chip}:{self.count if gpu else self.topology}"


def parse_target(words: str) -> TargetSpec:
    """Read the words that name a target.

    >>> parse_target("v5e:4x4").count, str(parse_target("h100"))
    (16, 'h100:1')

    Args:
      words: a chip, and after a colon the topology of TPUs or the number of GPUs; one by default.

    Raises:
      InputError: an unknown chip, or a topology or number that there is not.
    """
    name, _, size = words.partition(":")
    if name not in CHIPS:
        raise unknown("target", name, CHIPS)
    topologies = CHIPS[name].topologies
    if not topologies:
        return _gpus(name, size or "1")
    size = size or topologies[0]
    if size not in topologies:
        raise InputError(
            f"Target {words!r} names no slice of {name}; known are "
            f"{', '.join(f'{name}:{one}' for one in topologies)}."
        )
    return TargetSpec(name, size, math.prod(map(int, size.split("x"))))


def _gpus(name: str, size: str) -> TargetSpec:
    count = int(size) if size.isdecimal() and len(size) < 6 else 0
    hosts, odd = divmod(count, GPUS_PER_HOST)
    if count < 1 or (hosts and odd):
        raise InputError(
            f"Target '{name}:{size}' names no number of GPUs; write {name}:1 to "
            f"{name}:{GPUS_PER_HOST}, or a multiple of {GPUS_PER_HOST}."
        )
    return TargetSpec(name, f"1x{max(hosts, 1)}x{min(count, GPUS_PER_HOST)}", count)


def chip_of_kind(kind: str) -> Chip | None:
    """Return the chip that JAX calls so, if it is a known one."""
    return next((chip for chip in CHIPS.values() if chip.kind == kind), None)
