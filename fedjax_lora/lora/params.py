"""Pure functions on adapters: initialise, mask, multiply out and merge into a base."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from fedjax_lora.core import quantization, trees
from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.records import checked_options
from fedjax_lora.core.types import Adapter, Coefficients, Gain, Kernels, Key, LoRA, Params, PyTree
from fedjax_lora.lora.spec import LoraSpec, LoraTarget

HIGHEST = jax.lax.Precision.HIGHEST
Init = Literal["kaiming", "gaussian"]


@checked_options
def init(spec: LoraSpec, key: Key, *, method: Init = "kaiming") -> Adapter:
    """Initialise an adapter: random ``a``, zero ``b``, so that the model's output is unchanged.

    Args:
      spec: the targets.
      key: random key.
      method: ``kaiming``, PEFT's default, is uniform in ``±1/sqrt(i)``; ``gaussian`` has standard
        deviation ``1/R``.

    Returns:
      Factors by path, ``a: [(L,) i, R]`` and ``b: [(L,) R, o]``, in float32. Layers that the spec
      leaves out are zero.
    """
    return {
        target.path: LoRA(
            jnp.where(
                spec.layer_mask(target)[..., None],
                _random(
                    jax.random.fold_in(key, n), (*target.stack, target.inputs, spec.rank), method
                ),
                0,
            ),
            jnp.zeros((*target.stack, spec.rank, target.outputs)),
        )
        for n, target in enumerate(spec.targets)
    }


def _random(key: Key, shape: tuple[int, ...], method: Init) -> Array:
    inputs, rank = shape[-2:]
    if method == "gaussian":
        return jax.random.normal(key, shape) / rank
    bound = inputs**-0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def prefix_mask(rank: Int[Array, "*c"], max_rank: int) -> Bool[Array, "*c R"]:
    """Mask of the first ``rank`` components.

    Args:
      rank: ranks, ``int32[...]``.
      max_rank: the stored rank `R`.

    >>> prefix_mask(jnp.array([1, 3]), 3).tolist()
    [[True, False, False], [True, True, True]]
    """
    index = jnp.arange(max_rank, dtype=rank.dtype)
    return index.reshape((1,) * rank.ndim + (max_rank,)) < rank[..., None]


def spread(spec: LoraSpec, components: Array | Gain) -> dict[str, Array]:
    """Broadcast a mask or gain of components to every target; layers left out get zeros.

    Args:
      spec: the targets.
      components: ``[..., R]`` for all targets alike, or per path ``[..., (L,) R]``.

    Returns:
      ``[..., L, R]`` per path, ``[..., R]`` of targets without a stack.
    """

    def one(target: LoraTarget) -> Array:
        if isinstance(components, Mapping):
            mask = components[target.path]
        else:
            mask = components[..., None, :] if target.stack else components
        adapted = spec.layer_mask(target)
        if not target.stack:
            return mask
        adapted = adapted.reshape((1,) * (mask.ndim - 2) + adapted.shape)
        return jnp.where(adapted, mask, jnp.zeros((), mask.dtype))

    return {target.path: one(target) for target in spec.targets}


def factor_mask(
    components: Mapping[str, Array], *, a: ArrayLike = True, b: ArrayLike = True
) -> Adapter:
    """Masks of the factors from masks of components.

    Args:
      components: ``bool[..., R]`` per path.
      a: False (also traced) masks all of ``a``, for methods that freeze it.
      b: likewise for ``b``.

    Returns:
      Masks that broadcast against the factors, ``[..., 1, R]`` and ``[..., R, 1]``.
    """
    return {
        path: LoRA(mask[..., None, :] & jnp.asarray(a), mask[..., :, None] & jnp.asarray(b))
        for path, mask in components.items()
    }


def masked_components(mask: Adapter, coefficients: Coefficients = ()) -> dict[str, Array]:
    """Masks of components from masks of the factors, the inverse of `factor_mask`.

    A component is in the mask if any entry of either factor is, or any of its coefficients.

    Args:
      mask: of the factors.
      coefficients: of the coefficients, if there are masks of them.

    Returns:
      ``bool[..., R]`` per path; an axis of size one, which broadcasts, stays one.
    """
    found = {
        path: jnp.any(pair.a, axis=-2) | jnp.any(pair.b, axis=-1) for path, pair in mask.items()
    }
    for path, own in dict(coefficients or {}).items():
        found[path] |= jnp.any(own, axis=-1) if own.ndim > found[path].ndim else own
    return found


def fold(adapter: Adapter, coefficients: Coefficients) -> Adapter:
    """Multiply trained coefficients into ``a``, so that two factors remain.

    >>> pair = LoRA(jnp.array([[1.0, 2.0]]), jnp.ones((2, 1)))
    >>> fold({"x": pair}, {"x": jnp.array([3.0, 4.0])})["x"].a.tolist()
    [[3.0, 8.0]]
    >>> fold({"x": pair}, {"x": jnp.array([[0.0, 1.0], [1.0, 0.0]])})["x"].a.tolist()
    [[2.0, 1.0]]
    """
    if not coefficients:
        return adapter
    return {
        path: LoRA(_times(pair.a, coefficients[path]), pair.b) for path, pair in adapter.items()
    }


def _times(a: Float[Array, "*n i R"], sizes: Array) -> Float[Array, "*n i R"]:
    """``a`` times coefficients of its columns or blocks of a core, see `Coefficients`."""
    if sizes.ndim < a.ndim:
        return a * sizes[..., None, :]
    width = sizes.shape[-1]
    columns = a.reshape(*a.shape[:-1], -1, width).swapaxes(-2, -3)  # [..., blocks, i, m]
    blocks = sizes.reshape(*sizes.shape[:-2], -1, width, width)
    product = jnp.matmul(columns, blocks, precision=HIGHEST)
    return product.swapaxes(-2, -3).reshape(a.shape)


def keep(adapter: Adapter, mask: Adapter) -> Adapter:
    """Zero the adapter where the mask (see `factor_mask`) is false."""
    return jax.tree.map(lambda x, m: jnp.where(m, x, 0), adapter, mask)


def uniform_gain(spec: LoraSpec, rank: Array | int | None = None) -> Gain:
    """The gain of an adapter whose first ``rank`` components are active.

    Args:
      spec: the targets, the stored rank `R` and the scale rule.
      rank: ``int32[...]`` or a number; `R` by default.

    Returns:
      ``[..., (L,) R]`` per path: the scale of this rank at active components, 0 elsewhere.
    """
    rank = jnp.asarray(spec.rank if rank is None else rank)
    active = prefix_mask(rank, spec.rank)
    scale = jnp.asarray(spec.scale(rank), jnp.float32)
    return spread(spec, jnp.where(active, scale[..., None], 0.0))


def delta(pair: LoRA, gain: Float[Array, "*batch R"]) -> Float[Array, "*batch i o"]:
    """What the adapter adds to its kernel: ``(a * gain) @ b``, ``[..., i, o]``, in float32."""
    return jnp.matmul(pair.a * gain[..., None, :], pair.b, precision=HIGHEST)


def deltas(adapter: Adapter, gain: Gain) -> Kernels:
    """`delta` of every target."""
    return {path: delta(pair, gain[path]) for path, pair in adapter.items()}


def add_product(kernel: PyTree, pair: LoRA, gain: Array) -> Array:
    """``W + delta`` in the shape and dtype of the kernel, added in float32."""
    change = delta(pair, gain).reshape(kernel.shape)
    return (quantization.dequantize(kernel, change.dtype) + change).astype(kernel.dtype)


def merge(params: Params, adapter: Adapter, gain: Gain) -> Params:
    """Return a copy of the base with ``W + delta`` at the adapted kernels.

    Everything else is shared with the base. Kernels that are stored as codes become arrays.

    Args:
      params: the base parameters.
      adapter: factors by path.
      gain: multipliers of the components by path.

    Raises:
      InputError: an adapter path without a kernel, or with one of another size.

    >>> params = {"head": {"kernel": jnp.zeros((2, 3))}}
    >>> pair = LoRA(jnp.ones((2, 1)), jnp.ones((1, 3)))
    >>> merge(params, {"head": pair}, {"head": jnp.array([0.5])})["head"]["kernel"][0].tolist()
    [0.5, 0.5, 0.5]
    """
    check_fit(params, adapter)
    base = trees.flat(params)
    merged = {
        path: add_product(base[f"{path}/kernel"], pair, gain[path])
        for path, pair in adapter.items()
    }
    return replace_kernels(params, merged)


def kernels_of(params: Params, spec: LoraSpec) -> dict[str, PyTree]:
    """The adapted kernels of the base as matrices, ``[(L,) i, o]`` by path.

    Kernels with several input or output axes are reshaped; codes are returned as they are.
    """
    base = trees.flat(params)

    def matrix(target: LoraTarget) -> Any:
        kernel = base[f"{target.path}/kernel"]
        if target.kernel_shape is None:
            return kernel
        return kernel.reshape(*target.stack, target.inputs, target.outputs)

    return {target.path: matrix(target) for target in spec.targets}


def with_kernels(params: Params, kernels: Kernels) -> Params:
    """The parameters with these kernels, ``[(L,) i, o]`` by path, in place of the base's.

    Arrays are shared, not copied. Kernels that the base keeps as a tuple with one array per layer
    stay tuples. Without any kernels the result is ``params`` itself.
    """
    if not kernels:
        return params
    base = trees.flat(params)

    def like(old: Any, kernel: Any) -> Any:
        shape = shape_of(old)
        kernel = kernel if kernel.shape == shape else kernel.reshape(shape)
        return tuple(kernel) if isinstance(old, tuple) else kernel

    return replace_kernels(
        params, {path: like(base[f"{path}/kernel"], kernel) for path, kernel in kernels.items()}
    )


def replace_kernels(params: Params, kernels: Mapping[str, PyTree]) -> Params:
    """The parameters with other leaves as the kernels of these layers; nothing is copied."""

    def visit(node: Params, path: str) -> Params:
        return {name: replaced(name, child, path) for name, child in node.items()}

    def replaced(name: str, child: Any, path: str) -> Any:
        if isinstance(child, Mapping):
            return visit(child, f"{path}/{name}" if path else name)
        return kernels.get(path, child) if name == "kernel" else child

    return visit(params, "")


def shape_of(kernel: PyTree) -> tuple[int, ...]:
    """The shape of a kernel, also of one that is a tuple with one array per layer."""
    if isinstance(kernel, tuple):
        return (len(kernel), *kernel[0].shape)
    return tuple(kernel.shape)


def check_fit(params: Params, adapter: Adapter) -> None:
    """Check that the base has a kernel of the adapter's size at every adapted path.

    Raises:
      InputError: with every path that has none, or one of another size.
    """
    base = trees.flat(params)
    problems = []
    for path, pair in adapter.items():
        kernel = base.get(f"{path}/kernel")
        product = (*pair.a.shape[:-1], pair.b.shape[-1])
        if kernel is None:
            problems.append(f"{path} has no kernel in the base")
        elif not _is_same_matrix(shape_of(kernel), product):
            problems.append(f"{path}: kernel {shape_of(kernel)}, adapter makes {product}")
    raise_all("The adapter does not fit the base", problems)


def _is_same_matrix(kernel: tuple[int, ...], product: tuple[int, ...]) -> bool:
    """Whether a kernel ``[(L,) i..., o...]`` is a matrix of this shape, ``[(L,) i, o]``."""
    stack = len(product) - 2
    axes = kernel[stack:]
    splits = [(math.prod(axes[:n]), math.prod(axes[n:])) for n in range(1, len(axes))]
    return kernel[:stack] == product[:stack] and product[stack:] in splits
