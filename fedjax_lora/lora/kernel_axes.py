"""The kernels that targets name, and which of their axes are layers, inputs and outputs."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flax.core import meta

from fedjax_lora.core import trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.types import Params

PRESETS: Mapping[str, str] = {
    "attention-qv": r"/(query|value|q_proj|v_proj|qkv_proj)$",
    "attention": r"/(query|key|value|out|q_proj|k_proj|v_proj|qkv_proj|o_proj)$|/attention/output$",
    "all-linear": r"(^|/)layers?/",
}
"""Names for path patterns: query and value; all four of attention; every layer of a block.

They cover the models of this package and Flax's own attention modules."""


class Kernel(NamedTuple):
    """A kernel of the base: its path, its layer axis (0 or 1 of them) and its own axes."""

    path: str
    stack: tuple[int, ...]  # (L,) or ()
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def matched_kernels(
    params: Params,
    targets: str | Sequence[str],
    stacked: str,
    input_axes: Mapping[str, int],
) -> list[Kernel]:
    """Return the kernels that the target patterns match, in the order of their paths.

    Args:
      params: the base parameters.
      targets: a name of `PRESETS`, or one or several regular expressions.
      stacked: regular expression for paths whose kernels have a leading layer axis.
      input_axes: number of input axes by path or regular expression, where it is given.

    Raises:
      InputError: nothing matches, a matched kernel is a convolution or its input axes are not
        known, or the parameters are in boxes of Flax.
    """
    leaves = trees.flat(params)
    if boxed := [path for path, leaf in leaves.items() if isinstance(leaf, meta.AxisMetadata)]:
        raise InputError(
            f"The parameter {boxed[0]} is in a box with the names of its axes "
            f"({type(leaves[boxed[0]]).__name__}); take the parameters out of their boxes, with "
            "params = flax.linen.meta.unbox(params)."
        )
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
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
) -> Kernel:
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
        return Kernel(path, (), shape[:1], shape[1:])
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


def _divisions(path: str, shape: tuple[int, ...], stacked: bool) -> list[Kernel]:
    """Every division of a kernel's axes; those with a layer axis, if it may have one, first."""
    return [
        Kernel(path, shape[:stack], shape[stack : stack + n], shape[stack + n :])
        for stack in ((1, 0) if stacked else (0,))
        for n in range(1, len(shape) - stack)
    ]


def _with_inputs(choices: list[Kernel], count: int) -> list[Kernel]:
    """The choices with this number of input axes."""
    return [kernel for kernel in choices if len(kernel.inputs) == count]


def _agreeing(choices: list[Kernel], bias: tuple[int, ...] | None) -> list[Kernel]:
    """The choices whose bias would have the shape of the bias."""
    return [k for k in choices if bias is not None and (*k.stack, *k.outputs) == tuple(bias)]


def _stacked_matrix(choices: list[Kernel]) -> list[Kernel]:
    """The choice of a stack of matrices, if there is one."""
    return [k for k in choices if k.stack and len(k.inputs) == len(k.outputs) == 1]


def _of_attention(choices: list[Kernel]) -> list[Kernel]:
    """The choices that agree with the names of Flax's attention modules."""
    name = choices[0].path.rpartition("/")[2] if choices else ""
    if name in ("query", "key", "value"):
        return _with_inputs(choices, 1)
    return [k for k in choices if name == "out" and len(k.outputs) == 1]


def _is_convolution(kernel: Kernel) -> bool:
    """Whether a kernel of several input axes is in a layer named like Flax's convolutions."""
    names = kernel.path.lower().split("/")
    return len(kernel.inputs) > 1 and any(name.startswith("conv") for name in names)
