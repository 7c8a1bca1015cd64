"""Base kernels that a method changes: what the server has added, and what a site has of it."""

import hashlib
import secrets
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import lora
from fedjax_lora.core import quantization
from fedjax_lora.core.types import Adapter, Kernels, LoRA, Params
from fedjax_lora.deploy.message import Refused
from fedjax_lora.deploy.wire.kernels import (
    KernelChange,
    adapted_layers,
    kernel_bytes,
    product_bytes,
)
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Method
from fedjax_lora.methods.base import client_kernels, with_added


def first_kernels(method: Method, base: Params) -> Kernels:
    """The kernels that clients hold before the first round, with a fresh adapter; often ``{}``."""

    def made(kernels: Kernels) -> Kernels:
        kernels = {path: quantization.dequantize(kernel) for path, kernel in kernels.items()}
        adapter = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), method.spec.shapes())
        return client_kernels(method, method.init(adapter, kernels))

    return jax.jit(made)(lora.kernels_of(base, method.spec))


def digest(spec: LoraSpec, kernels: Mapping[str, object]) -> str:
    """The name of these kernels: a hex sha256 digest of their adapted layers."""
    whole = hashlib.sha256()
    for target in spec.targets:
        kernel, layers = np.asarray(kernels[target.path], np.float32), adapted_layers(target)
        whole.update(np.ascontiguousarray(kernel if layers is None else kernel[layers]).tobytes())
    return whole.hexdigest()


class KernelHistory:
    """What the server has added to the kernels, as far as a client may need it.

    Attributes:
      version: name of the kernels as they are.
    """

    def __init__(self, spec: LoraSpec) -> None:
        self.spec, self.version = spec, ""
        self._before: list[str] = []
        self._steps: list[dict[str, LoRA]] = []
        self._sizes: list[dict[str, int]] = []

    def begin(self, kernels: Kernels) -> None:
        """Name the kernels, unless they have a name."""
        self.version = self.version or digest(self.spec, kernels)

    def add(self, added: Adapter) -> None:
        """Remember what a round has added."""
        step = jax.tree.map(np.asarray, jax.device_get(added))
        if not any(np.any(pair.a) for pair in step.values()):
            return
        self._before.append(self.version)
        self._steps.append(step)
        self._sizes.append(
            {t.path: product_bytes(t, self.spec, step[t.path]) for t in self.spec.targets}
        )
        self.version = secrets.token_hex(16)
        while all(
            sum(sizes[t.path] for sizes in self._sizes) > kernel_bytes(t) for t in self.spec.targets
        ):  # then the kernels themselves are smaller
            for kept in (self._before, self._steps, self._sizes):
                kept.pop(0)

    def change(self, held: str | None, kernels: Kernels) -> KernelChange:
        """What a client needs that holds kernels of this name.

        Args:
          held: the name; None if it is not known.
          kernels: as they are.
        """
        names = [*self._before, self.version]
        if held not in names:
            whole = {path: np.asarray(x, np.float32) for path, x in kernels.items()}
            return KernelChange((self.version,), (), whole)
        first = names.index(held)
        whole = {
            t.path: np.asarray(kernels[t.path], np.float32)
            for t in self.spec.targets
            if sum(sizes[t.path] for sizes in self._sizes[first:]) > kernel_bytes(t)
        }
        return KernelChange(tuple(names[first:]), tuple(self._steps[first:]), whole)


class SiteKernels:
    """The kernels that a site holds.

    Attributes:
      version: their name; "" where the method changes none.
      kernels: ``[(L,) i, o]`` by path.
    """

    def __init__(self, spec: LoraSpec, kernels: Kernels) -> None:
        self.spec, self.kernels = spec, dict(kernels)
        self.version = digest(spec, kernels) if kernels else ""
        self._add = jax.jit(with_added)

    def apply(self, change: KernelChange) -> Kernels:
        """Follow the server's kernels.

        Raises:
          Refused: the change is one of other kernels than the site's.
        """
        missing = [t.path for t in self.spec.targets if t.path not in change.whole]
        steps = ()
        if missing and self.version not in change.versions:
            raise Refused(
                "The server's message builds on kernels that this site does not have; it is sent "
                "them whole in its next round."
            )
        if missing:
            steps = change.steps[change.versions.index(self.version) :]
        kernels = {path: self.kernels[path] for path in missing}
        for step in steps:
            kernels = self._add(kernels, {path: step[path] for path in missing})
        for target in self.spec.targets:
            if target.path in change.whole:
                kernels[target.path] = _with_layers(
                    self.kernels[target.path], change.whole[target.path], adapted_layers(target)
                )
        self.kernels, self.version = kernels, change.version
        return kernels


def _with_layers(own: object, new: np.ndarray, layers: np.ndarray | None) -> jax.Array:
    """The new kernel, with the layers that are not adapted as they are."""
    if layers is None:
        return jnp.asarray(new)
    kernel = np.array(own, np.float32)
    kernel[layers] = new[layers]
    return jnp.asarray(kernel)
