"""What a client needs to have the server's base kernels, where a method changes them.

A kernel changes by products of factors, one a round. A client that was away gets those that it has
missed, or the kernel itself where that is smaller.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora.core.types import LoRA
from fedjax_lora.deploy.message import Form, Message, Refused
from fedjax_lora.deploy.wire.masks import first_components, from_bits, in_rows, to_bits
from fedjax_lora.lora import LoraSpec, LoraTarget

FLOAT = np.dtype(np.float32)

MOST_COMPONENTS = 1 << 20
"""Components of a product that a server may announce."""


class KernelChange(NamedTuple):
    """How the kernels of a client become those of the server."""

    versions: tuple[str, ...]  # of the kernels before each step, and after the last one
    steps: tuple[dict[str, LoRA], ...]  # factors [(L,) i, K] and [(L,) K, o] of what is added
    whole: dict[str, np.ndarray]  # kernels [(L,) i, o] that are sent as they are

    @property
    def version(self) -> str:
        """That of the server's kernels."""
        return self.versions[-1]


def used_components(target: LoraTarget, spec: LoraSpec, pair: LoRA) -> np.ndarray:
    """Which components of a product are not zero, ``bool[(L,) K]``."""
    used = np.any(pair.a != 0, axis=-2) & np.any(pair.b != 0, axis=-1)
    return used & first_components(target, spec, 1)[..., :1]


def product_bytes(target: LoraTarget, spec: LoraSpec, pair: LoRA) -> int:
    """Bytes of a product in a message."""
    used = used_components(target, spec, pair)
    return int(used.sum()) * (target.inputs + target.outputs) * 4 + -(-used.size // 8)


def kernel_bytes(target: LoraTarget) -> int:
    """Bytes of a kernel in a message."""
    return target.adapted * target.inputs * target.outputs * 4


def pack_kernels(
    spec: LoraSpec, change: KernelChange | None
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """The arrays and the JSON value of a change; None where kernels do not change."""
    if change is None:
        return {}, None
    arrays: dict[str, np.ndarray] = {}
    for target in spec.targets:
        if target.path in change.whole:
            kernel = change.whole[target.path]
            arrays[f"{target.path}.kernel"] = kernel[_layers(target)] if target.stack else kernel
            continue
        for n, step in enumerate(change.steps):
            pair = step[target.path]
            used, name = used_components(target, spec, pair), f"{target.path}.added{n}"
            arrays[f"{name}.used"] = to_bits(used)
            arrays[f"{name}.a"], arrays[f"{name}.b"] = in_rows(pair.a, "a")[used], pair.b[used]
    sizes = [[step[t.path].a.shape[-1] for t in spec.targets] for step in change.steps]
    return arrays, {
        "versions": list(change.versions),
        "components": sizes,
        "whole": sorted(change.whole),
    }


def kernel_forms(spec: LoraSpec, message: Message) -> dict[str, Form]:
    """The arrays that a message with this change has.

    Raises:
      Refused: its JSON value is not that of a change.
    """
    value = message.meta["kernels"]
    if value is None:
        return {}
    _check(spec, value)
    made = {}
    for target in spec.targets:
        if target.path in value["whole"]:
            layers = (target.adapted,) if target.stack else ()
            made[f"{target.path}.kernel"] = Form((*layers, target.inputs, target.outputs), FLOAT)
            continue
        for name, shape in _products(spec, target, value):
            made[f"{name}.used"] = Form((-(-int(np.prod(shape)) // 8),), np.dtype(np.uint8))
            count = _count(message, f"{name}.used")
            made[f"{name}.a"] = Form((count, target.inputs), FLOAT)
            made[f"{name}.b"] = Form((count, target.outputs), FLOAT)
    return made


def unpack_kernels(spec: LoraSpec, message: Message) -> KernelChange | None:
    """Read what `pack_kernels` has written, of a message whose forms have been checked."""
    value = message.meta["kernels"]
    if value is None:
        return None
    whole: dict[str, np.ndarray] = {}
    steps: list[dict[str, LoRA]] = [{} for _ in value["components"]]
    for target in spec.targets:
        if target.path in value["whole"]:
            kernel = np.zeros((*target.stack, target.inputs, target.outputs), np.float32)
            kernel[_layers(target) if target.stack else ...] = message.arrays[
                f"{target.path}.kernel"
            ]
            whole[target.path] = kernel
            continue
        for step, (name, shape) in zip(steps, _products(spec, target, value), strict=True):
            step[target.path] = _product(target, message.arrays, name, shape)
    return KernelChange(tuple(value["versions"]), tuple(steps), whole)


def adapted_layers(target: LoraTarget) -> np.ndarray | None:
    """The numbers of the layers whose kernels change; None without a layer axis."""
    return _layers(target) if target.stack else None


def _product(
    target: LoraTarget, arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> LoRA:
    used = from_bits(arrays[f"{name}.used"], shape)
    a = np.zeros((*shape, target.inputs), np.float32)
    b = np.zeros((*shape, target.outputs), np.float32)
    a[used], b[used] = arrays[f"{name}.a"], arrays[f"{name}.b"]
    return LoRA(np.ascontiguousarray(np.moveaxis(a, -1, -2)), b)


def _layers(target: LoraTarget) -> np.ndarray:
    layers = np.ones(target.stack, bool) if target.layers is None else np.array(target.layers)
    return np.flatnonzero(layers)


def _products(
    spec: LoraSpec, target: LoraTarget, value: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name of each step's product in a message, and the shape of its components."""
    place = [t.path for t in spec.targets].index(target.path)
    for n, sizes in enumerate(value["components"]):
        yield f"{target.path}.added{n}", (*target.stack, sizes[place])


def _count(message: Message, name: str) -> int:
    """How many components a bit mask names."""
    bits = message.arrays.get(name)
    if bits is None or bits.dtype != np.uint8:
        raise Refused(f"Array {name!r} of a message is missing or no bit mask.")
    return int(np.unpackbits(bits).sum())


def _check(spec: LoraSpec, value: object) -> None:
    """Check the JSON value of a change.

    Raises:
      Refused: it is none.
    """

    def is_size(x: object) -> bool:
        return type(x) is int and 0 <= x <= MOST_COMPONENTS

    good = isinstance(value, dict) and set(value) == {"versions", "components", "whole"}
    if good:
        versions, sizes, whole = (value[n] for n in ("versions", "components", "whole"))  # pyright: ignore
        good = (
            all(isinstance(x, list) for x in (versions, sizes, whole))
            and all(isinstance(x, str) for x in (*versions, *whole))
            and len(versions) == len(sizes) + 1
            and set(whole) <= {target.path for target in spec.targets}
            and all(
                isinstance(x, list) and len(x) == len(spec.targets) and all(map(is_size, x))
                for x in sizes
            )
        )
    if not good:
        raise Refused("A message says how kernels change in a way that is unknown.")
