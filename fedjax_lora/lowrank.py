"""Linear algebra of products ``a @ b`` that are never multiplied out unless that is cheaper.

Everything runs in float32 at the highest matmul precision: a TPU would otherwise multiply in
bfloat16 and a GPU in TF32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora.types import LoRA

matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def square_norm(pair: LoRA) -> Float[Array, "*batch"]:
    """``||a @ b||_F^2`` from two ``k x k`` Gram matrices: ``tr((a^T a)(b b^T))``, ``[...]``."""
    a, b = (x.astype(jnp.float32) for x in pair)
    gram_a = matmul(a.mT, a)
    gram_b = matmul(b, b.mT)
    return jnp.maximum(jnp.sum(gram_a * gram_b, axis=(-2, -1)), 0.0)


def core(pair: LoRA) -> Float[Array, "*batch m n"]:
    """A matrix with the singular values of ``a @ b``: ``k x k`` where that is smaller.

    ``R_a @ R_b^T`` of two thin QR factorisations, or the product itself where ``k`` reaches
    ``min(i, o)``. The choice is made from the shapes.

    Args:
      pair: ``[..., i, k]`` and ``[..., k, o]``.
    """
    a, b = (x.astype(jnp.float32) for x in pair)
    if a.shape[-1] >= min(a.shape[-2], b.shape[-1]):
        return matmul(a, b)
    return _over_matrices(_core_thin)(a, b)


def _core_thin(a: Array, b: Array) -> Array:
    return matmul(jnp.linalg.qr(a, mode="r"), jnp.linalg.qr(b.mT, mode="r").mT)


def norm(pair: LoRA) -> Float[Array, "*batch"]:
    """``||a @ b||_F`` to the rounding of ``||a|| ||b||``, also where the product cancels.

    The square root of `square_norm` is cheaper, but its traces cancel among squares: of a product
    that is zero it leaves the square root of the rounding.
    """
    return jnp.sqrt(jnp.sum(jnp.square(core(pair)), axis=(-2, -1)))


def singular_values(matrix: Float[Array, "*batch m n"]) -> Float[Array, "*batch k"]:
    """All of a matrix, descending; those of a product are those of its `core`."""
    return _over_matrices(lambda x: jnp.linalg.svd(x, compute_uv=False))(matrix)


def stack(pair: LoRA) -> LoRA:
    """A cohort's factors side by side: ``sum_k a_k @ b_k`` as one product.

    Args:
      pair: ``[c, ..., i, R]`` and ``[c, ..., R, o]``.

    Returns:
      ``[..., i, c*R]`` and ``[..., c*R, o]``.
    """
    a = jnp.moveaxis(pair.a, 0, -2)  # [..., i, c, R]
    b = jnp.moveaxis(pair.b, 0, -3)  # [..., c, R, o]
    return LoRA(a.reshape(*a.shape[:-2], -1), b.reshape(*b.shape[:-3], -1, b.shape[-1]))


def svd(
    pair: LoRA, rank: int
) -> tuple[Float[Array, "*batch i R"], Float[Array, "*batch R"], Float[Array, "*batch R o"]]:
    """The ``rank`` leading singular triplets of ``a @ b``.

    Two thin QR factorisations and the SVD of their ``k x k`` core, ``O((i + o) k^2 + k^3)``; the
    dense product where ``k`` reaches ``min(i, o)``. The choice is made from the shapes.

    Args:
      pair: ``[..., i, k]`` and ``[..., k, o]``.
      rank: triplets wanted; those beyond ``min(i, k, o)`` are zero.

    Returns:
      ``u: [..., i, rank]``, ``s: [..., rank]`` (descending), ``vt: [..., rank, o]``. The entry of
      each column of ``u`` with the largest magnitude is positive, so the result is deterministic.
    """
    a, b = (x.astype(jnp.float32) for x in pair)
    inputs, stacked = a.shape[-2:]
    thin = stacked < min(inputs, b.shape[-1])
    u, s, vt = _over_matrices(_svd_thin if thin else _svd_dense)(a, b)
    u, s, vt = u[..., :, :rank], s[..., :rank], vt[..., :rank, :]
    missing = rank - s.shape[-1]
    if missing > 0:
        pad = lambda x, *axes: jnp.pad(x, [(0, missing * (n in axes)) for n in range(x.ndim)])  # noqa: E731
        u, s, vt = pad(u, u.ndim - 1), pad(s, s.ndim - 1), pad(vt, vt.ndim - 2)
    return u, s, vt


def _svd_thin(a: Array, b: Array) -> tuple[Array, Array, Array]:
    q_a, r_a = jnp.linalg.qr(a)
    q_b, r_b = jnp.linalg.qr(b.mT)
    u, s, vt = jnp.linalg.svd(matmul(r_a, r_b.mT), full_matrices=False)
    return _fix_signs(matmul(q_a, u), s, matmul(vt, q_b.mT))


def _svd_dense(a: Array, b: Array) -> tuple[Array, Array, Array]:
    return _fix_signs(*jnp.linalg.svd(matmul(a, b), full_matrices=False))


def _fix_signs(u: Array, s: Array, vt: Array) -> tuple[Array, Array, Array]:
    largest = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), axis=0, keepdims=True), axis=0)
    sign = jnp.where(largest < 0, -1.0, 1.0)
    return u * sign, s, vt * sign.T  # sign: [1, k]


def _over_matrices(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Map ``fn`` over leading axes: batched on accelerators, one matrix at a time on a CPU.

    Batched LAPACK calls of the CPU backend deadlock in jaxlib 0.10.2 (two independent batched QR or
    SVD calls wait for the thread pool they occupy); single calls do not.
    """

    def mapped(*matrices: Array) -> Any:
        batch = matrices[0].shape[:-2]
        if not batch:
            return fn(*matrices)
        flat = tuple(m.reshape(-1, *m.shape[-2:]) for m in matrices)
        out = jax.lax.platform_dependent(
            *flat,
            cpu=lambda *m: jax.lax.map(lambda one: fn(*one), m),
            default=jax.vmap(fn),
        )
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), out)

    return mapped
