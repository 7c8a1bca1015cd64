"""Linear algebra of low-rank products ``a @ b``, multiplied out only where that is cheaper.

Everything runs in float32 at the highest matmul precision: a TPU would otherwise multiply in
bfloat16 and a GPU in TF32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_lora.core.layerwise import map_layers
from fedjax_lora.core.subspace import leading_triplets, matmul
from fedjax_lora.core.types import LoRA

GRAM_SIZE_RATIO = 8  # smallest ratio of matrix size to requested rank for using the Gram matrix
GRAM_ROUNDING = 10 * float(jnp.finfo(jnp.float32).eps)  # of eigenvalues, relative to the first
REFINEMENTS = 2  # times that the eigenvectors are multiplied by the matrix and its transpose
MAX_GRAM_ERROR = 3e-5  # largest acceptable `gram_error`


def square_norm(pair: LoRA) -> Float[Array, "*batch"]:
    """Compute ``||a @ b||_F^2`` as ``tr((a^T a)(b b^T))``, from two ``k x k`` Gram matrices."""
    a, b = (x.astype(jnp.float32) for x in pair)
    gram_a = matmul(a.mT, a)
    gram_b = matmul(b, b.mT)
    return jnp.maximum(jnp.sum(gram_a * gram_b, axis=(-2, -1)), 0.0)


def core(pair: LoRA) -> Float[Array, "*batch m n"]:
    """Return a matrix with the singular values of ``a @ b``, of size ``k x k`` if that is smaller.

    ``R_a @ R_b^T`` of two thin QR factorisations, or the product itself where ``k`` reaches
    ``min(i, o)``. The choice is made from the shapes.

    Args:
      pair: ``[..., i, k]`` and ``[..., k, o]``.
    """
    a, b = (x.astype(jnp.float32) for x in pair)
    if a.shape[-1] >= min(a.shape[-2], b.shape[-1]):
        return matmul(a, b)
    return _each(_core_thin, a, b)


def _core_thin(a: Array, b: Array) -> Array:
    return matmul(jnp.linalg.qr(a, mode="r"), jnp.linalg.qr(b.mT, mode="r").mT)


def norm(pair: LoRA) -> Float[Array, "*batch"]:
    """Compute ``||a @ b||_F`` with an error of the rounding of ``||a|| ||b||``.

    The square root of `square_norm` is cheaper, but its traces subtract squares: for a product that
    is zero the result is the square root of the rounding error.
    """
    a, b = (x.astype(jnp.float32) for x in pair)
    inputs, stacked, outputs = *a.shape[-2:], b.shape[-1]
    if stacked >= min(inputs, outputs):
        product = matmul(a, b)
    elif inputs <= outputs:  # the larger factor is only multiplied
        product = _each(lambda a, b: matmul(jnp.linalg.qr(a, mode="r"), b), a, b)
    else:
        product = _each(lambda a, b: matmul(a, jnp.linalg.qr(b.mT, mode="r").mT), a, b)
    return jnp.sqrt(jnp.sum(jnp.square(product), axis=(-2, -1)))


def singular_values(matrix: Float[Array, "*batch m n"]) -> Float[Array, "*batch k"]:
    """All singular values of a matrix, descending; for a product pass its `core`."""
    return _each(lambda x: jnp.linalg.svd(x, compute_uv=False), matrix)


def stack(pair: LoRA) -> LoRA:
    """Stack a cohort's factors along the rank, so that ``sum_k a_k @ b_k`` is one product.

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
    """Compute the ``rank`` leading singular triplets of ``a @ b``.

    On a CPU two thin QR factorisations and the SVD of their ``k x k`` core, ``O((i + o) k^2 +
    k^3)``; the dense product where ``k`` reaches ``min(i, o)``. The choice is made from the shapes.
    On accelerators subspace iteration, see `fedjax_lora.core.subspace`. Leading axes are layers,
    see `fedjax_lora.core.layerwise`.

    Args:
      pair: ``[..., i, k]`` and ``[..., k, o]``.
      rank: number of triplets; those beyond ``min(i, k, o)`` are zero.

    Returns:
      ``u: [..., i, rank]``, ``s: [..., rank]`` (descending), ``vt: [..., rank, o]``. The entry of
      each column of ``u`` with the largest magnitude is positive, so the result is deterministic.
    """
    a, b = (x.astype(jnp.float32) for x in pair)
    inputs, stacked = a.shape[-2:]
    thin = stacked < min(inputs, b.shape[-1])
    by_lapack = functools.partial(_svd_thin if thin else _svd_dense, rank=rank)
    by_products = functools.partial(leading_triplets, rank=min(rank, *a.shape[-2:], b.shape[-1]))

    def one(a: Array, b: Array) -> Triplets:
        return _fix_signs(*jax.lax.platform_dependent(a, b, cpu=by_lapack, default=by_products))

    return _filled_up(*_each(one, a, b), rank=rank)


def svd_of_matrix(matrix: Float[Array, "m n"], rank: int) -> "Triplets":
    """Compute the ``rank`` leading singular triplets of a matrix on a CPU, as `svd` of a product.

    Args:
      matrix: one that is multiplied out.
      rank: number of triplets.
    """
    return _filled_up(*_fix_signs(*_leading(matrix, rank)), rank=rank)


def _filled_up(u: Array, s: Array, vt: Array, *, rank: int) -> "Triplets":
    """Add triplets of zeros where there are fewer than asked for."""
    missing = rank - s.shape[-1]
    if missing <= 0:
        return u, s, vt
    pad = lambda x, axis: jnp.pad(x, [(0, missing * (n == axis)) for n in range(x.ndim)])  # noqa: E731
    return pad(u, u.ndim - 1), pad(s, s.ndim - 1), pad(vt, vt.ndim - 2)


def as_product(matrix: Float[Array, "*batch i o"]) -> LoRA:
    """A matrix as a product, for functions of products: with the identity as the other factor."""
    unit = jnp.broadcast_to(jnp.eye(matrix.shape[-1]), (*matrix.shape[:-2], *2 * matrix.shape[-1:]))
    return LoRA(matrix, unit)


def nearest_orthogonal(
    matrix: Float[Array, "*batch r r"], *, proper: bool = False
) -> Float[Array, "*batch r r"]:
    """The orthogonal matrix that is nearest to a square matrix, its polar factor ``U V^T``.

    It solves the orthogonal Procrustes problem: for ``matrix = x^T y`` it is the orthogonal `q`
    that minimises ``||x q - y||_F``.

    Args:
      matrix: ``[..., r, r]``.
      proper: the nearest rotation instead, whose determinant is 1: where that of ``U V^T`` is -1,
        the direction of the smallest singular value is turned round.
    """
    u, _, vt = svd(as_product(matrix), matrix.shape[-1])
    nearest = matmul(u, vt)
    if not proper:
        return nearest
    mirrored = _each(jnp.linalg.det, nearest) < 0
    last = jnp.arange(matrix.shape[-1]) == matrix.shape[-1] - 1
    sign = jnp.where(mirrored[..., None] & last.reshape((1,) * mirrored.ndim + (-1,)), -1.0, 1.0)
    return matmul(u * sign[..., None, :], vt)


def ridge(
    a: Float[Array, "*batch i R"], product: LoRA, penalty: float
) -> Float[Array, "*batch R o"]:
    """Solve ridge regression: the `d` that minimises ``||product - a @ d||^2 + penalty ||d||^2``.

    Uses a QR factorisation, since the normal equations would square the condition number.

    Args:
      a: regressors, ``[..., i, R]``.
      product: the target as factors ``[..., i, k]`` and ``[..., k, o]``.
      penalty: above 0.

    Returns:
      ``d: [..., R, o]``.
    """

    def one(a: Array, left: Array, right: Array) -> Array:
        q, r = jnp.linalg.qr(jnp.concatenate([a, penalty**0.5 * jnp.eye(a.shape[1])]))
        return jax.scipy.linalg.solve_triangular(r, matmul(matmul(q[: a.shape[0]].mT, left), right))

    return _each(one, a, *product)


def _each(fn: Callable[..., Any], *matrices: Array) -> Any:
    """Map ``fn`` over matrices with any leading axes."""
    batch = matrices[0].shape[:-2]
    if not batch:
        return fn(*matrices)
    out = map_layers(fn, *(x.reshape(-1, *x.shape[-2:]) for x in matrices))
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), out)


Triplets = tuple[Array, Array, Array]


def _svd_thin(a: Array, b: Array, *, rank: int) -> Triplets:
    q_a, r_a = jnp.linalg.qr(a)
    q_b, r_b = jnp.linalg.qr(b.mT)
    u, s, vt = _leading(matmul(r_a, r_b.mT), rank)
    return matmul(q_a, u), s, matmul(vt, q_b.mT)


def _svd_dense(a: Array, b: Array, *, rank: int) -> Triplets:
    return _leading(matmul(a, b), rank)


def _leading(m: Array, rank: int) -> Triplets:
    """Leading triplets of a matrix by LAPACK; a few of a large one from its Gram matrix."""
    if m.shape[0] < m.shape[1]:
        u, s, vt = _leading(m.mT, rank)
        return vt.mT, s, u.mT
    if m.shape[1] < GRAM_SIZE_RATIO * rank:
        return _from_svd(m, rank=rank)
    return _from_gram(m, rank=rank)


def _from_svd(m: Array, *, rank: int) -> Triplets:
    u, s, vt = jnp.linalg.svd(m, full_matrices=False)
    return u[:, :rank], s[:rank], vt[:rank]


def _from_gram(m: Array, *, rank: int) -> Triplets:
    """Leading triplets of ``m`` within the span of ``2 * rank`` refined eigenvectors of ``m^T m``.

    Falls back to the full SVD where `gram_error` exceeds `MAX_GRAM_ERROR`.
    """
    largest = jnp.max(jnp.abs(m))
    unit = m / jnp.where(largest > 0, largest, 1.0)  # squares neither overflow nor underflow
    square, vectors = jnp.linalg.eigh(matmul(unit.mT, unit))  # ascending

    def project(unit: Array) -> Triplets:
        q, _ = jnp.linalg.qr(matmul(unit, vectors[:, -2 * rank :]))
        for _ in range(REFINEMENTS):
            q, _ = jnp.linalg.qr(matmul(unit, jnp.linalg.qr(matmul(unit.mT, q))[0]))
        u, s, vt = _from_svd(matmul(q.mT, unit), rank=rank)
        return matmul(q, u), s, vt

    safe = gram_error(square, rank) < MAX_GRAM_ERROR
    u, s, vt = jax.lax.cond(safe, project, functools.partial(_from_svd, rank=rank), unit)
    return u, s * largest, vt


def gram_error(square: Float[Array, " n"], rank: int) -> Float[Array, ""]:
    """Bound the error of the Gram matrix's leading triplets, relative to the first singular value.

    The Gram matrix has a rounding error of ``GRAM_ROUNDING * s_1^2``. With the last requested
    singular value `s` and the first value `t` beyond ``2 * rank``, the angle between its
    eigenvectors and the requested space is at most ``GRAM_ROUNDING * s_1^2 / (s^2 - t^2)``. Each
    product with ``m`` or its transpose multiplies this angle by at most ``t / s``, and the part of
    the matrix that is missed in the end is of size `t`.

    Args:
      square: ``[n]``, eigenvalues of the Gram matrix, ascending.
      rank: number of requested triplets.

    Returns:
      The bound; infinite if the requested values cannot be told from the rounding error.
    """
    first, last = square[-1], square[-rank]
    beyond = jnp.maximum(square[-2 * rank - 1], GRAM_ROUNDING * first)
    separated = last > beyond
    angle = GRAM_ROUNDING * first / jnp.where(separated, last - beyond, 1.0)
    ratio = beyond / jnp.where(separated, last, 1.0)  # (t / s)^2
    error = angle * ratio ** (REFINEMENTS + 0.5) * jnp.sqrt(beyond / first)
    return jnp.where(separated & (angle < 1), error, jnp.inf)


def _fix_signs(u: Array, s: Array, vt: Array) -> Triplets:
    largest = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), axis=0, keepdims=True), axis=0)
    sign = jnp.where(largest < 0, -1.0, 1.0)
    return u * sign, s, vt * sign.T  # sign: [1, k]
