"""Leading singular triplets by subspace iteration: matrix products and small factorisations only.

A TPU has no singular value decomposition, and XLA's for it takes minutes to compile; a GPU's is
slow for one large matrix after another. Here a block of vectors is multiplied by the matrix and its
transpose until nothing that matters is gained; the only factorisations are Cholesky and `eigh` of
the block's size, which both have, batched.

Halko, Martinsson & Tropp, "Finding structure with randomness", SIAM Review 53 (2011).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

Triplets = tuple[Array, Array, Array]

OVERSAMPLING = 2  # vectors of the block for each triplet
STEPS_PER_CHECK = 4  # products with the matrix and its transpose between two looks at the error
MAX_CHECKS = 64
MAX_EXCESS = 1e-6  # see `excess_error`, relative to the norm of the triplets
WORST_EXCESS = 5e-4  # after the last check, whatever the spectrum
PASSES = 3  # of `orthonormalise`
EPS = float(jnp.finfo(jnp.float32).eps)


class _State(NamedTuple):
    """The block after a check."""

    right: Array  # [o, p], nearly orthonormal, the leading directions first
    triplets: Triplets  # [i, rank], [rank], [o, rank]
    excess: Array  # float32[], relative
    checks: Array  # int32[]


@functools.partial(jax.jit, static_argnames="rank")
def leading_triplets(a: Float[Array, "i k"], b: Float[Array, "k o"], rank: int) -> Triplets:
    """Compute the leading singular triplets of ``a @ b``.

    The truncated product is as close to ``a @ b`` as the best one, up to `MAX_EXCESS` of its norm.
    Without a gap behind the last triplet the best one is not determined any better than that. After
    ``MAX_CHECKS * STEPS_PER_CHECK`` steps the result is taken as it is. Only spectra that fall by
    less than a hundredth over the whole block need more, and for these any other directions are
    nearly as good: the excess is at most `WORST_EXCESS`.

    Args:
      a: ``[i, k]``, float32.
      b: ``[k, o]``, float32.
      rank: number of triplets, at most ``min(i, k, o)``.

    Returns:
      ``u: [i, rank]`` and ``vt: [rank, o]``, orthonormal even where singular values are 0, and
      ``s: [rank]``, descending.
    """
    left, right, size = _scaled(a, b)
    apply, apply_transposed = _products(left, right)
    width = min(OVERSAMPLING * rank, *a.shape, b.shape[1])
    noise = _noise(max(a.shape[0], b.shape[1]), width)
    orthonormal = functools.partial(orthonormalise, noise=noise)

    def step(_: Any, w: Array) -> Array:
        return orthonormal(apply_transposed(apply(w)))

    def check(state: _State) -> _State:
        w = jax.lax.fori_loop(0, STEPS_PER_CHECK, step, state.right)
        image = apply(w)
        q = orthonormal(image)
        x, s, y = small_svd(matmul(q.mT, image))
        u, w = matmul(q, x[:, :rank]), matmul(w, y)
        v = w[:, :rank]
        residual = apply_transposed(u) - v * s[None, :rank]
        excess = excess_error(s, jnp.linalg.norm(residual, axis=0))
        return _State(w, (u, s[:rank], v), excess, state.checks + 1)

    def going_on(state: _State) -> Array:
        return (state.excess > MAX_EXCESS) & (state.checks < MAX_CHECKS)

    nothing = (jnp.zeros((a.shape[0], rank)), jnp.zeros(rank), jnp.zeros((b.shape[1], rank)))
    start = _State(noise[: b.shape[1]], nothing, jnp.asarray(jnp.inf), jnp.asarray(0))
    u, s, v = jax.lax.while_loop(going_on, check, start).triplets
    return orthonormal(u), s * size, orthonormal(v).mT


Product = Callable[[Array], Array]


def _products(left: Array, right: Array) -> tuple[Product, Product]:
    """Multiplication with ``left @ right`` and with its transpose, in the cheaper way."""
    (inputs, stacked), outputs = left.shape, right.shape[1]
    if stacked * (inputs + outputs) > inputs * outputs:
        product = matmul(left, right)
        return (lambda x: matmul(product, x)), (lambda x: matmul(product.mT, x))
    return (
        lambda x: matmul(left, matmul(right, x)),
        lambda x: matmul(right.mT, matmul(left.mT, x)),
    )


def excess_error(s: Float[Array, " p"], residual: Float[Array, " r"]) -> Float[Array, ""]:
    """Estimate by how much the error of a truncated product exceeds that of the best one.

    With ``m @ v_j = s_j u_j`` exactly, what is missed is seen in ``m^T u_j - s_j v_j``, of length
    ``residual_j``. Rotating `u_j` towards a direction of singular value `t` gains at most the
    distance of ``s_j^2`` from the largest eigenvalue of ``[[s_j^2, s_j residual_j],
    [s_j residual_j, t^2]]``; for `t` the first value behind the wanted ones is taken. The gain is
    the difference of the two squared errors, and their sum is at least what the block itself has
    behind the wanted triplets.

    Args:
      s: singular values within the block, descending.
      residual: of the wanted triplets, the first ``r`` of the block's ``p``.

    Returns:
      The excess, relative to the norm of the triplets; 0 if that is 0.
    """
    wanted, beyond = s[: residual.size], s[residual.size :]
    next_square = jnp.square(beyond[0]) if beyond.size else jnp.zeros(())
    half = jnp.maximum(jnp.square(wanted) - next_square, 0.0) / 2
    push = wanted * residual
    below = jnp.sqrt(jnp.square(half) + jnp.square(push)) + half
    gain = jnp.sum(jnp.square(push) / jnp.where(below > 0, below, 1.0))
    best = jnp.sum(jnp.square(beyond)) + jnp.sum(jnp.square(residual))
    excess = gain / jnp.maximum(jnp.sqrt(gain + best) + jnp.sqrt(best), jnp.finfo(s.dtype).tiny)
    size = jnp.linalg.norm(wanted)
    return jnp.where(size > 0, excess / jnp.where(size > 0, size, 1.0), 0.0)


def orthonormalise(x: Float[Array, "m p"], noise: Float[Array, "n q"]) -> Float[Array, "m p"]:
    """Orthonormalise columns from left to right, as the ``Q`` of a QR factorisation does.

    Cholesky factorisations of the Gram matrix, shifted so that they exist, repeated because each
    removes only what is above the shift.

    Args:
      x: the columns.
      noise: random columns, at least as large, for those that depend on others or are zero.
    """
    rows, count = x.shape
    shift = 2 * EPS * count * jnp.eye(count)
    x = _unit(x) + EPS * noise[:rows, :count]

    def once(_: Any, x: Array) -> Array:
        x = _unit(x)
        factor = jnp.linalg.cholesky(matmul(x.mT, x) + shift, symmetrize_input=False)
        return jax.lax.linalg.triangular_solve(factor, x, lower=True, transpose_a=True)

    return _unit(jax.lax.fori_loop(0, PASSES, once, x))


def small_svd(m: Float[Array, "p p"]) -> Triplets:
    """All triplets ``(u, s, v)`` of a small square matrix, by `eigh` of ``[[0, m], [m^T, 0]]``.

    The eigenvalues are ``s`` and ``-s``, with an error of the rounding of the first; those of
    ``m^T m`` would lose all that is below its root. Vectors of values near 0 are not orthogonal.
    """
    size = m.shape[0]
    zero = jnp.zeros_like(m)
    both = jnp.concatenate([jnp.concatenate([zero, m], 1), jnp.concatenate([m.mT, zero], 1)])
    values, vectors = jnp.linalg.eigh(both, symmetrize_input=False)  # ascending
    values, vectors = values[: size - 1 : -1], vectors[:, : size - 1 : -1]
    return _unit(vectors[:size]), jnp.maximum(values, 0.0), _unit(vectors[size:])


def _unit(x: Array) -> Array:
    """Columns at length 1, zeros as they are."""
    size = jnp.linalg.norm(x, axis=0, keepdims=True)
    return x / jnp.where(size > 0, size, 1.0)


def _noise(rows: int, columns: int) -> Array:
    """The same random unit columns in every call."""
    return jax.random.normal(jax.random.key(0), (rows, columns)) / rows**0.5


def _scaled(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Both factors with entries up to 1, and what their product is to be multiplied by."""
    size_a, size_b = (jnp.max(jnp.abs(x)) for x in (a, b))
    size_a, size_b = (jnp.where(x > 0, x, 1.0) for x in (size_a, size_b))
    return a / size_a, b / size_b, size_a * size_b
