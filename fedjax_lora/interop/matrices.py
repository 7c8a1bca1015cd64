"""Conversion between stacked adapters and the factors of single matrices.

Files of other libraries hold one pair of factors per matrix, each of its own rank. Components at
the end of a matrix that add nothing are left out of the files.
"""

import collections
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.types import Adapter, Array, Gain, Kernels, LoRA, PyTree
from fedjax_lora.interop.peft_writer import Factors
from fedjax_lora.lora.spec import LoraTarget

__all__ = [
    "LoadedAdapter",
    "MatrixPlace",
    "compress",
    "from_kernels",
    "join",
    "pad_ranks",
    "split",
    "unpad",
]

MatrixPlace = tuple[LoraTarget, int | None]
"""A single matrix: its target, and its layer if the target is a stack."""


class LoadedAdapter(NamedTuple):
    """An adapter read from files, with the other parameters that its folder holds.

    Attributes:
      targets: adapted layers.
      adapter: factors by path, ``a: [(L,) i, R]`` and ``b: [(L,) R, o]``, where `R` is the rank of
        the largest layer.
      gain: multiplier of each component by path, ``[(L,) R]``; 0 beyond a layer's own rank.
      params: parameters of the base that the folder also holds (a head, a pooler), by path.
      num_labels: number of outputs of the folder's head; None without a head.
    """

    targets: tuple[LoraTarget, ...]
    adapter: Adapter
    gain: Gain
    params: Mapping[str, np.ndarray] = types.MappingProxyType({})
    num_labels: int | None = None


def split(
    targets: tuple[LoraTarget, ...],
    adapter: Adapter,
    gain: Gain,
    name_of: Callable[[str, int | None], str],
) -> dict[str, Factors]:
    """Split an adapter into the factors of single matrices.

    Args:
      targets: adapted layers.
      adapter: factors by path, ``a: [(L,) i, R]`` and ``b: [(L,) R, o]``.
      gain: multiplier of each component by path, ``[(L,) R]``.
      name_of: ``(path, layer) -> name`` of a matrix; the layer is None without a stack.

    Returns:
      The factors of every adapted matrix by name.

    Raises:
      InputError: a target is a kernel with several input or output axes.
    """
    raise_all(
        "PEFT stores adapters of matrices only",
        [f"{s.path} has a kernel of shape {s.kernel_shape}" for s in targets if s.kernel_shape],
    )
    factors = {}
    for target, layer in _adapted_matrices(targets):
        index = () if layer is None else layer
        arrays = (*adapter[target.path], gain[target.path])
        factors[name_of(target.path, layer)] = _trimmed(*(np.asarray(x)[index] for x in arrays))
    return factors


def _adapted_matrices(targets: tuple[LoraTarget, ...]) -> Iterator[MatrixPlace]:
    for target in targets:
        if target.layers is None:
            yield target, None
        else:
            yield from ((target, layer) for layer, adapted in enumerate(target.layers) if adapted)


def _trimmed(a: np.ndarray, b: np.ndarray, gain: np.ndarray) -> Factors:
    """The active components of a matrix up to the last that adds something, at least one."""
    active = np.flatnonzero(gain)
    nonzero = np.any(a[:, active], axis=0) & np.any(b[active], axis=1)
    last = int(np.max(np.flatnonzero(nonzero), initial=0))
    kept = active[: last + 1] if len(active) else np.array([0])
    scale = gain[kept[0]] if len(active) else np.float32(1)
    a, b = a[:, kept], b[kept]
    if np.any(gain[kept] != scale):
        b = b * (gain[kept] / scale)[:, None]
    # The shortest decimal that is this float32, so that a round alpha stays round.
    return Factors(a, b, float(str(np.float32(scale))))


def join(places: Mapping[str, MatrixPlace], factors: Mapping[str, Factors]) -> LoadedAdapter:
    """Join the factors of single matrices to a stacked adapter; the inverse of `split`.

    Args:
      places: the matrices of the model by name.
      factors: factors by some of these names.

    Returns:
      The adapter at the largest rank; arrays are zero in layers that are not adapted and in
      components beyond a layer's rank.
    """
    rank = max(pair.rank for pair in factors.values())
    targets: dict[str, LoraTarget] = {}
    pairs: dict[str, dict[int | None, Factors]] = collections.defaultdict(dict)
    for name, pair in factors.items():
        target, layer = places[name]
        targets[target.path] = target
        pairs[target.path][layer] = pair
    stacked = {path: _stack(target, pairs[path], rank) for path, target in targets.items()}
    return LoadedAdapter(
        targets=tuple(target for target, _, _ in stacked.values()),
        adapter={path: pair for path, (_, pair, _) in stacked.items()},
        gain={path: gain for path, (_, _, gain) in stacked.items()},
    )


def pad_ranks(factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """Return factors of the same products that have one rank and one scale.

    Components of zeros are added up to the largest rank. Where a scale differs from the most
    frequent one, the second factor is multiplied by the ratio.

    Args:
      factors: factors by name.
    """
    rank = max(pair.rank for pair in factors.values())
    scale = collections.Counter(pair.scale for pair in factors.values()).most_common(1)[0][0]
    return {name: _padded(pair, rank, scale) for name, pair in factors.items()}


def _padded(pair: Factors, rank: int, scale: float) -> Factors:
    more = rank - pair.rank
    b = pair.b if pair.scale == scale else pair.b * np.float32(pair.scale / scale)
    return Factors(np.pad(pair.a, ((0, 0), (0, more))), np.pad(b, ((0, more), (0, 0))), scale)


def unpad(pair: Factors) -> Factors:
    """Remove components at the end whose two parts are zeros, but not the first component.

    Such a component adds nothing and cannot be trained. The scale stays.
    """
    used = np.flatnonzero(np.any(pair.a, axis=0) | np.any(pair.b, axis=1))
    rank = int(np.max(used, initial=0)) + 1
    return Factors(pair.a[:, :rank], pair.b[:rank], pair.scale)


def compress(pair: Factors) -> Factors:
    """Return factors of the same product whose rank is not above that of the matrix.

    Args:
      pair: factors of any rank; they are returned as they are if their rank is low enough.
    """
    inputs, outputs = len(pair.a), pair.b.shape[1]
    if pair.rank <= min(inputs, outputs):
        return pair
    product = (pair.a.astype(np.float64) @ pair.b).astype(np.float32)
    identity = np.eye(min(inputs, outputs), dtype=np.float32)
    a, b = (product, identity) if outputs <= inputs else (identity, product)
    return Factors(a, b, pair.scale)


def _stack(
    target: LoraTarget, pairs: Mapping[int | None, Factors], rank: int
) -> tuple[LoraTarget, LoRA, Array]:
    """Stack the factors of a target's layers, and mark these layers as adapted.

    Args:
      target: the target with all its layers.
      pairs: factors by layer; by None without a stack.
      rank: rank of the arrays.
    """
    a = np.zeros((*target.stack, target.inputs, rank), np.float32)
    b = np.zeros((*target.stack, rank, target.outputs), np.float32)
    gain = np.zeros((*target.stack, rank), np.float32)
    for layer, pair in pairs.items():
        index = ... if layer is None else layer
        a[index][:, : pair.rank] = pair.a
        b[index][: pair.rank] = pair.b
        gain[index][: pair.rank] = pair.scale
    layers = target.layers and tuple(layer in pairs for layer in range(len(target.layers)))
    adapted = LoraTarget(target.path, target.inputs, target.outputs, layers)
    return adapted, LoRA(jnp.asarray(a), jnp.asarray(b)), jnp.asarray(gain)


def from_kernels(
    before: Mapping[str, PyTree], after: Kernels, adapter: Adapter, gain: Gain
) -> tuple[Adapter, Gain]:
    """Express changed kernels and an adapter on top of them as one adapter.

    For methods that add to the base. The factors come from a float64 SVD of the change of each
    matrix; components within the float32 rounding error of the kernel are set to zero.

    Args:
      before: base kernels by path, ``[(L,) i, o]``.
      after: changed kernels by path, of the same shapes.
      adapter: global adapter on the changed kernels.
      gain: multipliers of its components.

    Returns:
      The adapter at the largest rank of a layer, and its gains, which are one.
    """
    factors = {
        path: _factorize_change(before[path], after[path], pair, gain[path])
        for path, pair in adapter.items()
    }
    ranks = (int(np.any(pair.b, axis=-1).sum(axis=-1).max(initial=1)) for pair in factors.values())
    rank = max(ranks)
    cut = {
        path: LoRA(*(jnp.asarray(x, jnp.float32) for x in (a[..., :rank], b[..., :rank, :])))
        for path, (a, b) in factors.items()
    }
    return cut, {path: jnp.ones(b.shape[:-1]) for path, (_, b) in cut.items()}


def _factorize_change(before: Any, after: Any, pair: LoRA, gain: Any) -> LoRA:
    """Factors of ``after - before + (a * gain) @ b`` in float64, largest component first."""
    a, b, g, old, new = (np.asarray(x, np.float64) for x in (*pair, gain, before, after))
    u, s, v = np.linalg.svd(new - old + (a * g[..., None, :]) @ b, full_matrices=False)
    # The norm of a matrix of rounding errors of the kernel's largest entry.
    largest = np.abs(new).max(axis=(-2, -1))
    noise = np.finfo(np.float32).eps * largest * sum(np.sqrt(new.shape[-2:]))
    root = np.sqrt(np.where(s > noise[..., None], s, 0))
    return LoRA(u * root[..., None, :], root[..., :, None] * v)
