"""The adapted layers of a model, their common rank and scale."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core.errors import InputError, raise_all, unknown
from fedjax_lora.core.records import check_fields, checked_options
from fedjax_lora.core.types import Adapter, AnyArray, Array, LoRA, Params
from fedjax_lora.lora.kernel_axes import Kernel, matched_kernels

SCALES: Mapping[str, Callable[[float, Any, int], Any]] = {
    "alpha/R": lambda alpha, rank, most: alpha / most,
    "alpha/r": lambda alpha, rank, most: alpha / rank,
    "alpha/sqrt(R)": lambda alpha, rank, most: alpha / most**0.5,
    "alpha/sqrt(r)": lambda alpha, rank, most: alpha / rank**0.5,
}
"""Scale rules: the multiplier of ``a @ b`` from alpha, the client's rank and the stored rank.

``alpha/R`` (the default) is one number for all clients, so that a component means the same on
every client. ``alpha/r`` is PEFT's rule with each client's own rank, ``alpha/sqrt(R)`` is rsLoRA
(arXiv 2312.03732), ``alpha/sqrt(r)`` is rsLoRA with each client's own rank.
"""


@dataclasses.dataclass(frozen=True)
class LoraTarget:
    """One adapted kernel, or a stack of them.

    Attributes:
      path: path of the layer, without ``/kernel``.
      inputs: input features `i`, the product of the kernel's input axes.
      outputs: output features `o`, the product of the kernel's output axes.
      layers: whether each of the stacked layers is adapted; None without a stack.
      kernel_shape: ``(i..., o...)``, the shape of one kernel with several input or output axes;
        None for a matrix ``[i, o]``.
    """

    path: str
    inputs: int
    outputs: int
    layers: tuple[bool, ...] | None = None
    kernel_shape: tuple[int, ...] | None = None

    @property
    def stack(self) -> tuple[int, ...]:
        """The leading axes of the target's arrays: ``(L,)``, or ``()`` without a stack."""
        return () if self.layers is None else (len(self.layers),)

    @property
    def adapted(self) -> int:
        """The number of adapted kernels."""
        return 1 if self.layers is None else sum(self.layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The targets of a model, the stored rank `R` and the scale.

    Attributes:
      targets: the adapted kernels.
      rank: the stored rank `R`, the highest any client may have.
      alpha: numerator of the scale.
      scale_rule: a name of `SCALES`.

    Raises:
      InputError: values of the wrong type, an unknown scale rule, an alpha that is not positive.
    """

    targets: tuple[LoraTarget, ...]
    rank: int
    alpha: float
    scale_rule: str = "alpha/R"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.scale_rule not in SCALES:
            raise unknown("scale rule", self.scale_rule, SCALES)
        if not 0 < self.alpha < math.inf:
            raise InputError(f"LoRA alpha must be above 0 and finite, got {self.alpha:g}.")

    @overload
    def scale(self, rank: float) -> float: ...
    @overload
    def scale(self, rank: AnyArray) -> AnyArray | float: ...
    def scale(self, rank: Any) -> Any:
        """The multiplier of an adapter of this rank, or of each of several ranks."""
        if isinstance(rank, jax.Array):
            rank = rank.astype(jnp.float32)
        return SCALES[self.scale_rule](self.alpha, rank, self.rank)

    @property
    def server_scale(self) -> float:
        """The multiplier of the global adapter, whose rank is `R`."""
        return float(self.scale(self.rank))

    @property
    def matrices(self) -> int:
        """The number of adapted kernels."""
        return sum(s.adapted for s in self.targets)

    @property
    def factor_sizes(self) -> LoRA:
        """Parameters of one component by factor: the sums of ``layers * i`` and ``layers * o``."""
        return LoRA(
            sum(s.adapted * s.inputs for s in self.targets),
            sum(s.adapted * s.outputs for s in self.targets),
        )

    @property
    def component_size(self) -> int:
        """Parameters of one component: the sum of ``layers * (i + o)`` over all targets."""
        return sum(self.factor_sizes)

    def shapes(self) -> Adapter:
        """The adapter with `jax.ShapeDtypeStruct` leaves, float32."""
        struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        return {
            s.path: LoRA(
                struct(*s.stack, s.inputs, self.rank), struct(*s.stack, self.rank, s.outputs)
            )
            for s in self.targets
        }

    def layer_mask(self, target: LoraTarget) -> Array:
        """Mask of a target's adapted layers, ``bool[L, 1]``, or ``bool[1]`` without a stack."""
        return jnp.asarray([True] if target.layers is None else np.array(target.layers)[:, None])


@checked_options
def make_spec(
    params: Params,
    *,
    targets: str | Sequence[str] = "attention-qv",
    rank: int,
    alpha: float | None = None,
    scale: str = "alpha/R",
    layers: Sequence[int] | None = None,
    stacked: str = r"(^|/)layers(/(?!\d)|$)",
    input_axes: Mapping[str, int] | None = None,
) -> LoraSpec:
    """Choose the kernels to adapt by path.

    Kernels are leaves named ``kernel``, ``[i..., o...]`` or ``[L, i..., o...]``. How many of the
    axes of a kernel are inputs follows from the shape of the bias beside it or, in Flax's
    attention modules without a bias, from the name of the layer.

    Args:
      params: the base parameters.
      targets: a name of `PRESETS`, or a regular expression (or several) searched in the
        ``/``-joined path of the layer.
      rank: the stored rank `R`, the highest any client may have.
      alpha: numerator of the scale; `R` by default, hence a scale of 1 under ``alpha/R``.
      scale: a name of `SCALES`.
      layers: adapt only these layers of a stack (counted from 0); all by default.
      stacked: regular expression for paths whose kernels have a leading layer axis.
      input_axes: number of input axes of kernels with three or more axes, by path or regular
        expression.

    Raises:
      InputError: nothing matches, a matched kernel is a convolution or its input axes are not
        known, the rank is below 1 or above a matched kernel's smaller side, a layer index is out
        of range, no layer is left, alpha is not positive, an unknown scale.

    >>> params = {"mlp": {"kernel": jnp.zeros((6, 3)), "bias": jnp.zeros(3)}}
    >>> make_spec(params, targets="mlp", rank=2).targets
    (LoraTarget(path='mlp', inputs=6, outputs=3, layers=None, kernel_shape=None),)
    """
    if scale not in SCALES:
        raise unknown("scale rule", scale, SCALES)
    found = tuple(
        _target(kernel, layers)
        for kernel in matched_kernels(params, targets, stacked, input_axes or {})
    )
    _check_rank(found, rank)
    if not any(target.adapted for target in found):
        raise InputError("LoRA layers=[] leaves no layer to adapt; leave it out to adapt all.")
    alpha = float(rank if alpha is None else alpha)
    return LoraSpec(targets=found, rank=rank, alpha=alpha, scale_rule=scale)


def _target(kernel: Kernel, layers: Sequence[int] | None) -> LoraTarget:
    chosen = None
    if kernel.stack:
        depth = kernel.stack[0]
        picked = range(depth) if layers is None else layers
        if bad := [x for x in picked if not 0 <= x < depth]:
            raise InputError(
                f"Layers {bad} do not exist in {kernel.path}, which has layers 0..{depth - 1}."
            )
        chosen = tuple(x in picked for x in range(depth))
    shape = (*kernel.inputs, *kernel.outputs)
    return LoraTarget(
        kernel.path,
        math.prod(kernel.inputs),
        math.prod(kernel.outputs),
        chosen,
        None if len(shape) == 2 else shape,
    )


def _check_rank(targets: Sequence[LoraTarget], rank: int) -> None:
    if rank < 1:
        raise InputError(f"LoRA rank must be at least 1, got {rank}.")
    raise_all(
        f"LoRA rank {rank} exceeds what a layer can have",
        [
            f"{target.path} is {target.inputs} x {target.outputs}"
            for target in targets
            if rank > min(target.inputs, target.outputs)
        ],
    )


def parameter_count(spec: LoraSpec, rank: int) -> int:
    """The number of parameters of an adapter of this rank.

    >>> target = LoraTarget("layers/query", 768, 768, (True,) * 18)  # Byun & Lee's DistilBERT
    >>> spec = LoraSpec(targets=(target,), rank=20, alpha=20.0)
    >>> [parameter_count(spec, r) for r in (5, 7, 20)]
    [138240, 193536, 552960]
    """
    return rank * spec.component_size
