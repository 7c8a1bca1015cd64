"""An adapter tree as the factors of single matrices, and back: what other libraries hold.

Components that add nothing at the end of a layer are left out, so layers may differ in rank.
"""

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.types import Adapter, Gain, Kernels, LoRA
from fedjax_lora.interop.peft_writer import Factors
from fedjax_lora.lora.spec import LoraTarget

NameOf = Callable[[str, int | None], str]
"""The name elsewhere of a site's path and layer (None without a stack)."""


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


def places(targets: tuple[LoraTarget, ...]) -> Iterator[tuple[LoraTarget, int | None]]:
    """Every adapted matrix: its site, and its layer if the site is a stack."""
    for target in targets:
        if target.layers is None:
            yield target, None
        else:
            yield from ((target, layer) for layer, adapted in enumerate(target.layers) if adapted)


def split(
    targets: tuple[LoraTarget, ...], adapter: Adapter, gain: Gain, name_of: NameOf
) -> dict[str, Factors]:
    """The factors of every adapted matrix by its name elsewhere.

    Args:
      targets: where the adapter is.
      adapter: ``a: [(L,) i, R]``, ``b: [(L,) R, o]``.
      gain: what each component is multiplied by, ``[(L,) R]`` per path.
      name_of: names of the matrices.

    Raises:
      InputError: a target is a kernel with several input or output axes.
    """
    raise_all(
        "PEFT stores adapters of matrices only",
        [f"{s.path} has a kernel of shape {s.kernel_shape}" for s in targets if s.kernel_shape],
    )
    return {
        name_of(target.path, layer): _one(
            *(np.asarray(x)[() if layer is None else layer] for x in z)
        )
        for target, layer in places(targets)
        for z in [(*adapter[target.path], gain[target.path])]
    }


def _one(a: np.ndarray, b: np.ndarray, gain: np.ndarray) -> Factors:
    """The active components of a matrix, without those at the end that add nothing."""
    active = np.flatnonzero(gain)
    alive = np.any(a[:, active], axis=0) & np.any(b[active], axis=1)
    last = int(np.max(np.flatnonzero(alive), initial=0))
    kept = active[: last + 1] if len(active) else np.array([0])
    scale = gain[kept[0]] if len(active) else np.float32(1)
    a, b = a[:, kept], b[kept]
    if np.any(gain[kept] != scale):
        b = b * (gain[kept] / scale)[:, None]
    # The shortest decimal that is this float32: alpha is then a round number where it was one.
    return Factors(a, b, float(str(np.float32(scale))))


def join(
    places_of: Mapping[str, tuple[LoraTarget, int | None]], factors: Mapping[str, Factors]
) -> LoadedAdapter:
    """The inverse of `split`: stacked arrays, zero where a layer is not adapted or of lower rank.

    Args:
      places_of: where the matrices of the model are, by name elsewhere.
      factors: by a part of these names.
    """
    rank = max(pair.rank for pair in factors.values())
    targets = {target.path: target for target, _ in (places_of[name] for name in factors)}
    arrays = {
        path: (
            np.zeros((*s.stack, s.inputs, rank), np.float32),
            np.zeros((*s.stack, rank, s.outputs), np.float32),
            np.zeros((*s.stack, rank), np.float32),
        )
        for path, s in targets.items()
    }
    adapted: dict[str, set[int | None]] = {path: set() for path in targets}
    for name, pair in factors.items():
        target, layer = places_of[name]
        a, b, gain = (x[... if layer is None else layer] for x in arrays[target.path])
        a[:, : pair.rank], b[: pair.rank], gain[: pair.rank] = pair
        adapted[target.path].add(layer)
    made = tuple(
        LoraTarget(
            s.path, s.inputs, s.outputs, s.layers and tuple(n in adapted[p] for n in _range(s))
        )
        for p, s in targets.items()
    )
    return LoadedAdapter(
        made,
        {path: LoRA(jnp.asarray(a), jnp.asarray(b)) for path, (a, b, _) in arrays.items()},
        {path: jnp.asarray(gain) for path, (_, _, gain) in arrays.items()},
    )


def _range(target: LoraTarget) -> range:
    return range(len(target.layers or ()))


def from_kernels(
    before: Mapping[str, Any], after: Kernels, adapter: Adapter, gain: Gain
) -> tuple[Adapter, Gain]:
    """One adapter that does what changed kernels and an adapter on top of them do together.

    For methods that add to the base. Factors come from a float64 SVD of the change of each matrix;
    components no larger than what float32 has rounded off the kernel are zero.

    Args:
      before: the base kernels by path, ``[(L,) i, o]``.
      after: the changed kernels.
      adapter: the global adapter.
      gain: of its components.

    Returns:
      The adapter, at the largest rank of a layer, and its gains, which are one.
    """
    found: dict[str, LoRA] = {}
    for path, pair in adapter.items():
        a, b, g, old, new = (
            np.asarray(x, np.float64) for x in (*pair, gain[path], before[path], after[path])
        )
        u, s, v = np.linalg.svd(new - old + (a * g[..., None, :]) @ b, full_matrices=False)
        # The norm of a matrix of rounding errors of the kernel's largest entry.
        largest = np.abs(new).max(axis=(-2, -1))
        noise = np.finfo(np.float32).eps * largest * sum(np.sqrt(new.shape[-2:]))
        s = np.where(s > noise[..., None], s, 0)
        root = np.sqrt(s)
        found[path] = LoRA(u * root[..., None, :], root[..., :, None] * v)
    rank = max(int(np.any(p.b, axis=-1).sum(axis=-1).max(initial=1)) for p in found.values())
    cut = {
        path: LoRA(*(jnp.asarray(x, jnp.float32) for x in (a[..., :rank], b[..., :rank, :])))
        for path, (a, b) in found.items()
    }
    return cut, {path: jnp.ones(b.shape[:-1]) for path, (_, b) in cut.items()}
