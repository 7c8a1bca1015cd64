"""The adapted layers of a model, their common rank and scale."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError, raise_all, unknown
from fedjax_lora.core.records import check_fields, checked_options
from fedjax_lora.core.types import Adapter, Array, LoRA, Params

PRESETS: Mapping[str, str] = {
    "attention-qv": r"/(query|value|q_proj|v_proj)$",
    "attention": r"/(query|key|value|out|q_proj|k_proj|v_proj|o_proj)$|/attention/output$",
    "all-linear": r"(^|/)layers?/",
}
"""Names for path patterns: query and value; all four of attention; every layer of a block.

They cover the models of this package and Flax's own attention modules."""

SCALES: Mapping[str, Any] = {
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

    def scale(self, rank: Any) -> Any:
        """The multiplier of an adapter of this rank (a number or an array of ranks)."""
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
        for kernel in _matched_kernels(params, targets, stacked, input_axes or {})
    )
    _check_rank(found, rank)
    if not any(target.adapted for target in found):
        raise InputError("LoRA layers=[] leaves no layer to adapt; leave it out to adapt all.")
    alpha = float(rank if alpha is None else alpha)
    return LoraSpec(targets=found, rank=rank, alpha=alpha, scale_rule=scale)


class _Kernel(NamedTuple):
    """A kernel of the base: its path, its layer axis (0 or 1 of them) and its own axes."""

    path: str
    stack: tuple[int, ...]  # (L,) or ()
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def _matched_kernels(
    params: Params,
    targets: str | Sequence[str],
    stacked: str,
    input_axes: Mapping[str, int],
) -> list[_Kernel]:
    """The kernels that the target patterns match, in the order of their paths."""
    shapes = {path: leaf.shape for path, leaf in trees.flat(params).items()}
    paths = [path.removesuffix("/kernel") for path in shapes if path.endswith("/kernel")]
    patterns = _patterns(targets)
    matched = sorted(path for path in paths if any(p.search(path) for p in patterns))
    if not matched:
        raise InputError(
            f"Targets {targets!r} match no layer; presets: {', '.join(PRESETS)}; "
            f"layers of this model: {', '.join(paths)}."
        )
    return [
        _with_axes(
            path,
            tuple(shapes[f"{path}/kernel"]),
            bias=shapes.get(f"{path}/bias"),
            stacked=re.search(stacked, path) is not None,
            count=_given_axes(path, input_axes),
        )
        for path in matched
    ]


def _patterns(targets: str | Sequence[str]) -> list[re.Pattern[str]]:
    texts = [targets] if isinstance(targets, str) else list(targets)
    try:
        return [re.compile(PRESETS.get(text, text)) for text in texts]
    except re.error as error:
        raise InputError(
            f"Targets {targets!r} hold an invalid regular expression: {error}."
        ) from error


def _given_axes(path: str, input_axes: Mapping[str, int]) -> int | None:
    """The number of input axes that the caller gives for a layer, if any."""
    if path in input_axes:
        return input_axes[path]
    return next((n for pattern, n in input_axes.items() if re.search(pattern, path)), None)


def _with_axes(
    path: str,
    shape: tuple[int, ...],
    *,
    bias: tuple[int, ...] | None,
    stacked: bool,
    count: int | None,
) -> _Kernel:
    """Divide the axes of a kernel into layers, inputs and outputs.

    Args:
      path: path of the layer.
      shape: shape of the kernel.
      bias: shape of the bias, if there is one.
      stacked: whether the path may have a layer axis.
      count: number of input axes, if given.

    Raises:
      InputError: the kernel is a convolution, or its input axes are not known.
    """
    if len(shape) == 2 and count in (None, 1):
        return _Kernel(path, (), shape[:1], shape[1:])
    choices = _divisions(path, shape, stacked)
    chosen = (
        _agreeing(choices, bias) or _stacked_matrix(choices) or _of_attention(choices)
        if count is None
        else _with_inputs(choices, count)
    )
    if not chosen:
        reason = "adapters need a matrix [i, o], and which axes are inputs is not known; give "
        raise _axes_error(path, shape, f"{reason}make_spec input_axes={{{path!r}: number}}, or")
    if count is None and _is_convolution(chosen[0]):
        raise _axes_error(path, shape, "adapters cannot follow a convolution;")
    return chosen[0]


def _axes_error(path: str, shape: tuple[int, ...], reason: str) -> InputError:
    return InputError(
        f"Target {path} has a kernel of shape {shape}; {reason} leave it out of the targets."
    )


def _divisions(path: str, shape: tuple[int, ...], stacked: bool) -> list[_Kernel]:
    """Every division of a kernel's axes; those with a layer axis, if it may have one, first."""
    return [
        _Kernel(path, shape[:stack], shape[stack : stack + n], shape[stack + n :])
        for stack in ((1, 0) if stacked else (0,))
        for n in range(1, len(shape) - stack)
    ]


def _with_inputs(choices: list[_Kernel], count: int) -> list[_Kernel]:
    """The choices with this number of input axes."""
    return [kernel for kernel in choices if len(kernel.inputs) == count]


def _agreeing(choices: list[_Kernel], bias: tuple[int, ...] | None) -> list[_Kernel]:
    """The choices whose bias would have the shape of the bias."""
    return [k for k in choices if bias is not None and (*k.stack, *k.outputs) == tuple(bias)]


def _stacked_matrix(choices: list[_Kernel]) -> list[_Kernel]:
    """The choice of a stack of matrices, if there is one."""
    return [k for k in choices if k.stack and len(k.inputs) == len(k.outputs) == 1]


def _of_attention(choices: list[_Kernel]) -> list[_Kernel]:
    """The choices that agree with the names of Flax's attention modules."""
    name = choices[0].path.rpartition("/")[2] if choices else ""
    if name in ("query", "key", "value"):
        return _with_inputs(choices, 1)
    return [k for k in choices if name == "out" and len(k.outputs) == 1]


def _is_convolution(kernel: _Kernel) -> bool:
    """Whether a kernel of several input axes is in a layer named like Flax's convolutions."""
    names = kernel.path.lower().split("/")
    return len(kernel.inputs) > 1 and any(name.startswith("conv") for name in names)


def _target(kernel: _Kernel, layers: Sequence[int] | None) -> LoraTarget:
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
