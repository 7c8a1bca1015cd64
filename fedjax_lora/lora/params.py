"""Pure functions on adapters: create, mask, multiply out, merge into a base and back."""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_lora.core import quantization, trees
from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.types import Adapter, Coefficients, Gain, Kernels, Key, LoRA
from fedjax_lora.lora.spec import LoraSpec

HIGHEST = jax.lax.Precision.HIGHEST
Init = Literal["kaiming", "gaussian"]


def init(spec: LoraSpec, key: Key, *, method: Init = "kaiming") -> Adapter:
    """A fresh adapter: random ``a``, zero ``b``, so that the model computes what it did before.

    ``kaiming`` is PEFT's default, uniform in ``±1/sqrt(i)``; ``gaussian`` has deviation ``1/R``.
    Layers that the template leaves out get a zero ``a`` too.
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


def prefix_mask(rank: Int[Array, "*c"], most: int) -> Bool[Array, "*c R"]:
    """Components below each client's rank: ``int32[c]`` to ``bool[c, R]``."""
    index = jnp.arange(most, dtype=rank.dtype)
    return index.reshape((1,) * rank.ndim + (most,)) < rank[..., None]


def spread(spec: LoraSpec, components: Array | Gain) -> dict[str, Array]:
    """One mask (or gain) of components as one per site, with the left-out layers switched off.

    Args:
      spec: the sites.
      components: ``[..., R]`` for all sites alike, or per path ``[..., (L,) R]``.

    Returns:
      ``[..., L, R]`` per path, ``[..., R]`` at sites without a stack.
    """

    def one(target: Any) -> Array:
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


def factor_mask(components: Mapping[str, Array], *, a: Any = True, b: Any = True) -> Adapter:
    """Masks of components ``bool[..., R]`` as masks that broadcast against the factors.

    ``a`` and ``b`` (booleans, or traced scalars) switch a whole factor off, as methods that freeze
    one factor need.
    """
    return {
        path: LoRA(mask[..., None, :] & jnp.asarray(a), mask[..., :, None] & jnp.asarray(b))
        for path, mask in components.items()
    }


def masked_components(mask: Adapter) -> dict[str, Array]:
    """Components with an entry of either factor in the mask, `factor_mask` backwards: ``[..., R]``.

    An axis of one, which broadcasts, stays one.
    """
    return {
        path: jnp.any(pair.a, axis=-2) | jnp.any(pair.b, axis=-1) for path, pair in mask.items()
    }


def fold(adapter: Adapter, coefficients: Coefficients) -> Adapter:
    """The adapter with trained coefficients multiplied into ``a``: two factors of one product."""
    if not coefficients:
        return adapter
    return {
        path: LoRA(pair.a * coefficients[path][..., None, :], pair.b)
        for path, pair in adapter.items()
    }


def times(gain: Gain, coefficients: Coefficients) -> Gain:
    """What the forward pass multiplies by: the gain times the trained coefficients, if any."""
    if not coefficients:
        return gain
    return {path: x * coefficients[path] for path, x in gain.items()}


def keep(adapter: Adapter, mask: Adapter) -> Adapter:
    """The adapter with zeros where the mask (see `factor_mask`) is false."""
    return jax.tree.map(lambda x, m: jnp.where(m, x, 0), adapter, mask)


def uniform_gain(spec: LoraSpec, rank: Array | int | None = None) -> Gain:
    """The gain of an adapter whose first ``rank`` components (all by default) are active."""
    rank = jnp.asarray(spec.rank if rank is None else rank)
    active = prefix_mask(rank, spec.rank)
    scale = jnp.asarray(spec.scale(rank), jnp.float32)
    return spread(spec, jnp.where(active, scale[..., None], 0.0))


def delta(pair: LoRA, gain: Float[Array, "*batch R"]) -> Float[Array, "*batch i o"]:
    """What the adapter adds to its kernel: ``(a * gain) @ b``, ``[..., i, o]``, in float32."""
    return jnp.matmul(pair.a * gain[..., None, :], pair.b, precision=HIGHEST)


def deltas(adapter: Adapter, gain: Gain) -> Kernels:
    """`delta` at every site."""
    return {path: delta(pair, gain[path]) for path, pair in adapter.items()}


def merge(params: Mapping[str, Any], adapter: Adapter, gain: Gain) -> Any:
    """A copy of the base with ``W + delta`` at the adapted kernels.

    Kernels that are stored as codes become arrays there.

    Raises:
      InputError: an adapter path without a kernel, or with one of another shape.
    """
    kernels = {path: f"{path}/kernel" for path in adapter}
    _check_kernels(params, adapter)
    base = trees.flat(params)
    new = {
        kernels[path]: (quantization.dequantize(base[kernels[path]], d.dtype) + d).astype(
            base[kernels[path]].dtype
        )
        for path, d in deltas(adapter, gain).items()
    }
    return trees.replace(params, new)


def _check_kernels(params: Mapping[str, Any], adapter: Adapter) -> None:
    base = trees.flat(params)
    problems = []
    for path, pair in adapter.items():
        want = (*pair.a.shape[:-1], pair.b.shape[-1])
        kernel = base.get(f"{path}/kernel")
        if kernel is None:
            problems.append(f"{path} has no kernel in the base")
        elif kernel.shape != want:
            problems.append(f"{path}: kernel {kernel.shape}, adapter makes {want}")
    raise_all("The adapter does not fit the base", problems)
