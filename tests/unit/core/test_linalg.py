"""Linear algebra of products, against float64 NumPy; `test_linalg_stall` is about time."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora.core import linalg
from fedjax_lora.core.types import LoRA

EPS = float(jnp.finfo(jnp.float32).eps)
svd = jax.jit(linalg.svd, static_argnums=1)


def random_pair(*shape: int, seed: int = 0, scale: float = 1.0, dtype=jnp.float32) -> LoRA:
    """``shape`` is ``(..., i, k, o)``."""
    rng = np.random.default_rng(seed)
    *batch, i, k, o = shape
    a = rng.normal(size=(*batch, i, k)) * scale
    b = rng.normal(size=(*batch, k, o))
    return LoRA(jnp.asarray(a, dtype), jnp.asarray(b, dtype))


def dense(pair: LoRA) -> np.ndarray:
    return np.asarray(pair.a, np.float64) @ np.asarray(pair.b, np.float64)


def check(pair: LoRA, rank: int) -> None:
    """Values, orthonormality, reconstruction and signs, to a multiple of float32's rounding.

    A thin factorisation rounds at the size of the factors' product, ``||a|| ||b||``, which is
    larger than ``||a b||`` only if they nearly cancel.
    """
    u, s, vt = (np.asarray(x, np.float64) for x in svd(pair, rank))
    product = dense(pair)
    i, o = product.shape[-2:]
    assert u.shape[-2:] == (i, rank) and s.shape[-1] == rank and vt.shape[-2:] == (rank, o)
    want = np.linalg.svd(product, compute_uv=False)
    k = min(rank, want.shape[-1], pair.a.shape[-1])  # beyond the inner side all is zero
    size = (
        np.linalg.norm(np.asarray(pair.a, np.float64), axis=(-2, -1))
        * np.linalg.norm(np.asarray(pair.b, np.float64), axis=(-2, -1))
    )[..., None]
    tolerance = 10 * EPS * size
    assert np.all(np.abs(s[..., :k] - want[..., :k]) <= tolerance)
    assert np.all(s >= 0) and np.all(np.diff(s, axis=-1) <= 0)
    best = np.linalg.svd(product, full_matrices=False)
    truncated = (best[0][..., :k] * best[1][..., None, :k]) @ best[2][..., :k, :]
    error = np.linalg.norm(product - (u * s[..., None, :]) @ vt, axis=(-2, -1))
    tail = np.linalg.norm(product - truncated, axis=(-2, -1))
    assert np.all(np.abs(error - tail) <= tolerance[..., 0] * np.sqrt(k))
    left, right = np.swapaxes(u[..., :k], -1, -2), vt[..., :k, :]
    for rows in (left, right):
        gram = rows @ np.swapaxes(rows, -1, -2)
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(k), gram.shape), atol=2e-6)
    largest = np.take_along_axis(u, np.argmax(np.abs(u), axis=-2)[..., None, :], axis=-2)
    assert np.all(largest[..., :k] > 0)


@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((20, 6, 15), 6),  # thin: two QR and a small core
        ((20, 6, 15), 4),
        ((9, 8, 9), 8),  # thin by one
        ((9, 9, 9), 9),  # dense from here
        ((8, 20, 6), 6),  # a stack wider than the layer
        ((7, 1, 5), 1),
        ((1, 1, 1), 1),
    ],
)
def test_svd_agrees_with_numpy(shape: tuple, rank: int):
    check(random_pair(*shape), rank)


@pytest.mark.parametrize("shape", [(3, 20, 6, 15), (2, 2, 20, 6, 15), (3, 8, 20, 6)])
def test_svd_of_batches_is_the_svd_of_each(shape: tuple):
    pair = random_pair(*shape)
    check(pair, 4)
    flat = LoRA(pair.a.reshape(-1, *pair.a.shape[-2:]), pair.b.reshape(-1, *pair.b.shape[-2:]))
    together = [x.reshape(-1, *x.shape[len(shape) - 3 :]) for x in svd(pair, 4)]
    for n in range(flat.a.shape[0]):
        alone = svd(LoRA(flat.a[n], flat.b[n]), 4)
        for x, y in zip(together, alone, strict=True):
            np.testing.assert_allclose(x[n], y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 6, 15), (9, 9, 9), (8, 20, 6), (2, 3, 20, 6, 15)])
def test_norm_and_singular_values_agree_with_numpy(shape: tuple):
    pair = random_pair(*shape)
    want = np.linalg.svd(dense(pair), compute_uv=False)
    core = jax.jit(linalg.core)(pair)
    k = core.shape[-1]
    assert k == (min(shape[-3], shape[-1]) if shape[-2] > 8 else shape[-2])
    got = jax.jit(linalg.singular_values)(core)
    np.testing.assert_allclose(got, want[..., :k], rtol=0, atol=1e-5 * want.max())
    norm = np.linalg.norm(dense(pair), axis=(-2, -1))
    np.testing.assert_allclose(jax.jit(linalg.norm)(pair), norm, rtol=1e-6)


@pytest.mark.parametrize("shape", [(40, 6, 35), (8, 20, 6)])
def test_norm_of_a_cancelling_product_is_at_rounding_level(shape: tuple):
    """The trace of Gram matrices would leave the square root of the rounding error."""
    a, b = random_pair(*shape)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(a.shape[1],) * 2))[0]
    turned_a = jnp.asarray(np.asarray(a, np.float64) @ turn, jnp.float32)
    turned_b = jnp.asarray(turn.T @ np.asarray(b, np.float64), jnp.float32)
    nothing = LoRA(jnp.concatenate([a, -turned_a], axis=1), jnp.concatenate([b, turned_b], axis=0))
    size = np.linalg.norm(dense(LoRA(a, b)))
    assert float(jax.jit(linalg.norm)(nothing)) < 1e-6 * size


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("shape", [(20, 6, 15), (8, 20, 6)])
def test_svd_is_accurate_at_any_scale(shape: tuple, scale: float):
    check(random_pair(*shape, scale=scale), 4)


@pytest.mark.parametrize("shape", [(20, 6, 15), (8, 20, 6)])
def test_svd_of_unbalanced_factors_agrees_with_numpy(shape: tuple):
    """A tiny ``a`` with a huge ``b``; fresh adapters are the opposite."""
    a, b = random_pair(*shape)
    check(LoRA(a * 1e-5, b * 1e5), 4)


@pytest.mark.parametrize("shape", [(20, 6, 15), (8, 20, 6)])
@pytest.mark.parametrize("true_rank", [1, 3])
def test_svd_of_rank_deficient_products_agrees_with_numpy(shape: tuple, true_rank: int):
    i, k, o = shape
    rng = np.random.default_rng(0)
    a = rng.normal(size=(i, true_rank)) @ rng.normal(size=(true_rank, k))
    pair = LoRA(jnp.asarray(a, jnp.float32), jnp.asarray(rng.normal(size=(k, o)), jnp.float32))
    check(pair, 4)
    s = np.asarray(svd(pair, 4)[1])
    assert np.all(s[true_rank:] < 1e-5 * s[0])
    assert s[true_rank - 1] > 1e-3 * s[0]


@pytest.mark.parametrize("shape", [(20, 6, 15), (8, 20, 6)])
def test_svd_with_repeated_singular_values_keeps_subspace_and_product(shape: tuple):
    """Vectors of equal singular values are arbitrary; their subspace and the product are not."""
    i, k, o = shape
    n = min(4, i, o)
    a = np.zeros((i, k))
    b = np.zeros((k, o))
    a[:n, :n] = np.diag([5.0, 2.0, 2.0, 2.0])
    b[:n, :n] = np.eye(n)
    check(LoRA(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)), n)


@pytest.mark.parametrize("shape", [(20, 6, 15), (8, 20, 6), (3, 20, 6, 15)])
def test_svd_of_zero_is_finite(shape: tuple):
    """A cohort that trained nothing, or a layer that is left out."""
    pair = jax.tree.map(jnp.zeros_like, random_pair(*shape))
    u, s, vt = svd(pair, 4)
    assert not np.any(s)
    assert np.all(np.isfinite(u)) and np.all(np.isfinite(vt))
    half = random_pair(*shape)
    assert not np.any(svd(LoRA(half.a, jnp.zeros_like(half.b)), 4)[1])


@pytest.mark.parametrize("shape", [(20, 3, 15), (3, 9, 20)])
def test_triplets_beyond_the_rank_are_zero(shape: tuple):
    i, k, o = shape[-3:]
    most = min(i, k, o)
    u, s, vt = svd(random_pair(*shape), most + 3)
    assert (u.shape[-1], s.shape[-1], vt.shape[-2]) == (most + 3,) * 3
    assert not np.any(s[..., most:])
    assert not np.any(u[..., :, most:])
    assert not np.any(vt[..., most:, :])
    assert np.all(s[..., :most] > 0)


def test_thin_and_dense_paths_agree():
    """The same product as a narrow stack and as a wide one (padded with zeros)."""
    for i, k, o in ((20, 6, 15), (15, 6, 20)):
        narrow = random_pair(i, k, o)
        wide = LoRA(
            jnp.pad(narrow.a, ((0, 0), (0, max(i, o)))), jnp.pad(narrow.b, ((0, max(i, o)), (0, 0)))
        )
        assert narrow.a.shape[1] < min(i, o) <= wide.a.shape[1]
        for x, y in zip(svd(narrow, k), svd(wide, k), strict=True):
            np.testing.assert_allclose(x, y, atol=2e-5 * float(jnp.max(jnp.abs(y))))


def test_svd_takes_bfloat16_and_computes_in_float32():
    for shape in ((20, 6, 15), (8, 20, 6)):
        pair = random_pair(*shape, dtype=jnp.bfloat16)
        out = svd(pair, 4)
        assert {x.dtype for x in out} == {jnp.dtype(jnp.float32)}
        check(pair, 4)  # of the rounded factors, to float32 accuracy


@pytest.mark.parametrize("shape", [(20, 6, 15), (8, 20, 6), (3, 20, 6, 15)])
def test_signs_of_singular_vectors_do_not_depend_on_the_factors(shape: tuple):
    """Flipping signs inside the factors changes neither the product nor any triplet."""
    pair = random_pair(*shape)
    k = pair.a.shape[-1]
    flip = jnp.asarray(np.random.default_rng(1).choice([-1.0, 1.0], size=k), jnp.float32)
    axes = (1,) * (len(shape) - 3)
    flipped = LoRA(pair.a * flip.reshape(*axes, 1, k), pair.b * flip.reshape(*axes, k, 1))
    order = np.random.default_rng(2).permutation(k)
    moved = LoRA(pair.a[..., order], pair.b[..., order, :])
    first = svd(pair, 4)
    for other in (flipped, moved):
        for x, y in zip(first, svd(other, 4), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-4)
    for x, y in zip(first, svd(pair, 4), strict=True):
        np.testing.assert_array_equal(x, y)


def test_negated_product_flips_only_the_right_singular_vectors():
    pair = random_pair(20, 6, 15)
    u, s, vt = svd(pair, 4)
    nu, ns, nvt = svd(LoRA(-pair.a, pair.b), 4)
    np.testing.assert_allclose(nu, u, atol=1e-5)
    np.testing.assert_allclose(ns, s, rtol=1e-5)
    np.testing.assert_allclose(nvt, -vt, atol=1e-5)


def test_svd_compiles_once_per_shape_and_agrees_with_plain_python():
    first = svd(random_pair(3, 8, 20, 6), 4)
    compilations = svd._cache_size()
    svd(random_pair(3, 8, 20, 6, seed=1, scale=100.0), 4)
    assert svd._cache_size() == compilations
    for x, y in zip(first, linalg.svd(random_pair(3, 8, 20, 6), 4), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


# ------------------------------------------------------- few triplets of a large matrix

MANY, WANTED = 96, 8  # twelve times as many, so that the Gram matrix is asked first

SPECTRA = {
    "flat": np.linspace(1.0, 0.6, MANY),
    "slow": 1 / np.arange(1.0, MANY + 1),
    "quick": 1 / np.arange(1.0, MANY + 1) ** 2,
    "geometric": 0.7 ** np.arange(MANY),
    "steep": 0.3 ** np.arange(MANY),
    "repeated": np.where(np.arange(MANY) < WANTED, 2.0, 1.0),
    "low rank": np.where(np.arange(MANY) < 3, 1.0, 0.0),
    "full rank": np.where(np.arange(MANY) < WANTED, 1.0, 0.0),
    "one and a plain": np.where(np.arange(MANY) < 1, 1.0, np.linspace(1e-2, 6e-3, MANY)),
    # One direction dwarfs the others: below the root of the rounding a Gram matrix is blind.
    **{
        f"one and {size:g}": np.where(
            np.arange(MANY) < 1, 1.0, np.where(np.arange(MANY) < WANTED, size, size / 2)
        )
        for size in (0.1, 0.03, 1e-2, 3e-3, 1e-3, 1e-4)
    },
}


def with_spectrum(s: np.ndarray, i: int, o: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, len(s))))[0] for n in (i, o))
    return (u * s) @ v.T


def best(m: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(m, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def product(u: jax.Array, s: jax.Array, vt: jax.Array) -> np.ndarray:
    u, s, vt = (np.asarray(x, np.float64) for x in (u, s, vt))
    return (u * s) @ vt


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(
    ("i", "o"), [(MANY, MANY), (MANY, 200), pytest.param(200, MANY, marks=pytest.mark.slow)]
)
def test_leading_triplets_are_accurate_for_any_spectrum(spectrum: str, i: int, o: int):
    """As accurate as the full SVD, whatever the values beyond the requested ones."""
    s = SPECTRA[spectrum]
    m = with_spectrum(s, i, o).astype(np.float32).astype(np.float64)
    a, b = (jnp.eye(i), m) if i <= o else (m, jnp.eye(o))  # the dense path
    pair = LoRA(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    check(pair, WANTED)
    exact = best(m, WANTED)
    error = np.linalg.norm(product(*svd(pair, WANTED)) - exact) / np.linalg.norm(exact)
    # Without a gap the truncation itself is no better determined.
    assert error < (1e-4 if spectrum in ("flat", "one and a plain") else 1e-5)


def bound(s: np.ndarray) -> float:
    return float(linalg.gram_error(jnp.asarray(np.square(s[::-1]), jnp.float32), WANTED))


def test_gram_matrix_is_used_only_within_its_error_bound():
    """Spectra whose error bound is small enough use the Gram matrix; steep ones do not."""
    trusted = {name for name, s in SPECTRA.items() if bound(s) < linalg.MAX_GRAM_ERROR}
    assert trusted >= {"flat", "slow", "repeated", "one and 0.1", "one and 0.01"}
    blind = {"steep", "low rank", "one and a plain", "one and 0.001", "one and 0.0001"}
    assert not trusted & blind
    assert bound(np.zeros(MANY)) == np.inf


@pytest.mark.parametrize("spectrum", ["one and a plain", "one and 0.003", "quick", "slow", "flat"])
def test_truncation_error_is_within_the_bound(spectrum: str, monkeypatch: pytest.MonkeyPatch):
    """Up to the SVD's own error; also for a spectrum whose bound excludes the Gram matrix."""
    monkeypatch.setattr(linalg, "MAX_GRAM_ERROR", np.inf)
    m = with_spectrum(SPECTRA[spectrum], MANY, MANY).astype(np.float32)
    want = best(m.astype(np.float64), WANTED)
    by_gram, by_svd = (
        np.linalg.norm(product(*jax.jit(fn, static_argnames="rank")(m, rank=WANTED)) - want)
        for fn in (linalg._from_gram, linalg._from_svd)
    )
    assert by_gram < 3 * (bound(SPECTRA[spectrum]) + by_svd)
    if spectrum == "one and a plain":
        assert by_gram > 3 * by_svd


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("spectrum", ["flat", "low rank"])
def test_squares_neither_overflow_nor_vanish(magnitude: float, spectrum: str):
    m = with_spectrum(SPECTRA[spectrum], MANY, MANY).astype(np.float32).astype(np.float64)
    pair = LoRA(jnp.asarray(m * magnitude, jnp.float32), jnp.eye(MANY))
    exact = best(np.asarray(pair.a, np.float64), WANTED)
    assert np.linalg.norm(product(*svd(pair, WANTED)) - exact) < 2e-4 * np.linalg.norm(exact)
    np.testing.assert_allclose(
        svd(pair, WANTED)[1] / magnitude, SPECTRA[spectrum][:WANTED], atol=1e-5
    )


def test_cancelling_product_of_large_factors_is_zero():
    u, s, vt = svd(LoRA(jnp.zeros((MANY, MANY)), jnp.eye(MANY)), WANTED)
    assert not np.any(s)
    assert np.all(np.isfinite(u)) and np.all(np.isfinite(vt))


# --------------------------------------------------------------------------------- wide cohorts


def cohort_pair(count: int, i: int, rank: int, o: int, seed: int = 0) -> LoRA:
    """Clients of mixed ranks stored at the highest, ``[c, i, R]`` and ``[c, R, o]``."""
    rng = np.random.default_rng(seed)
    own = np.arange(rank) < rng.integers(1, rank + 1, count)[:, None]
    a = rng.normal(size=(count, i, rank)) * own[:, None, :] / count
    b = rng.normal(size=(count, rank, o)) * own[:, :, None]
    return LoRA(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))


@pytest.mark.parametrize(
    ("i", "o"), [pytest.param(64, 64, marks=pytest.mark.slow), (64, 40), (40, 64)]
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_svd_of_a_thousand_stacked_clients_agrees_with_numpy(i: int, o: int, dtype: Any):
    """Stacks of 4,000 components, a hundred times as many as there are dimensions."""
    pair = jax.tree.map(lambda x: x.astype(dtype), cohort_pair(1000, i, 4, o))
    check(linalg.stack(pair), 4)


@pytest.mark.parametrize("count", [5, 1000])
def test_client_order_changes_the_svd_only_by_rounding(count: int):
    """Neither signs nor the order of components: for a thin stack and for a wide one."""
    pair = cohort_pair(count, 64, 4, 40)
    order = np.random.default_rng(1).permutation(count)
    first = svd(linalg.stack(pair), 4)
    moved = svd(linalg.stack(LoRA(pair.a[order], pair.b[order])), 4)
    for x, y in zip(first, moved, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * float(jnp.max(jnp.abs(x))))


@pytest.mark.parametrize("shape", [(20, 6, 15), (8, 20, 6)])
def test_equal_singular_values_span_the_same_space(shape: tuple):
    """Vectors of equal singular values are arbitrary; the projectors onto their spaces are not."""
    i, k, o = shape
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 4)))[0] for n in (i, o))
    mix = np.linalg.qr(rng.normal(size=(k, 4)))[0]
    a, b = (u * [5.0, 2.0, 2.0, 2.0]) @ mix.T, mix @ v.T
    found = svd(LoRA(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)), 4)
    left, right = np.asarray(found[0])[:, 1:], np.asarray(found[2])[1:].T
    np.testing.assert_allclose(left @ left.T, u[:, 1:] @ u[:, 1:].T, atol=5e-6)
    np.testing.assert_allclose(right @ right.T, v[:, 1:] @ v[:, 1:].T, atol=5e-6)


# ------------------------------------------------------------------------------------------ norms


@pytest.mark.parametrize("shape", [(20, 6, 15), (4, 30, 5), (3, 9, 2, 7), (2, 3, 5, 4, 6)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_square_norm_equals_that_of_the_dense_product(shape: tuple, scale: float):
    """By the trace of two Gram matrices, for any batch."""
    pair = random_pair(*shape, scale=scale)
    want = np.sum(dense(pair) ** 2, axis=(-2, -1))
    np.testing.assert_allclose(linalg.square_norm(pair), want, rtol=2e-6)


def test_square_norm_is_never_negative():
    """Factors that cancel leave rounding of either sign, and a root is taken of it."""
    rng = np.random.default_rng(0)
    rounded = []
    for _ in range(50):
        a, b, x = rng.normal(size=(30, 1)), rng.normal(size=(1, 30)), rng.normal()
        pair = LoRA(
            jnp.asarray(np.hstack([a, a * x]), jnp.float32),
            jnp.asarray(np.vstack([b, -b / x]), jnp.float32),
        )
        gram_a, gram_b = np.asarray(pair.a).T @ pair.a, np.asarray(pair.b) @ pair.b.T
        rounded.append(float(np.sum(gram_a * gram_b)))
        size = float(jnp.sum(jnp.square(pair.a)) * jnp.sum(jnp.square(pair.b)))
        assert 0.0 <= float(linalg.square_norm(pair)) <= 4 * EPS * size
    assert min(rounded) < 0  # what the trace alone would have been


def test_square_norm_of_bfloat16_is_computed_in_float32():
    pair = random_pair(20, 6, 15, dtype=jnp.bfloat16)
    assert linalg.square_norm(pair).dtype == jnp.float32
    np.testing.assert_allclose(linalg.square_norm(pair), np.sum(dense(pair) ** 2), rtol=1e-5)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_stacked_factors_multiply_to_the_sum_of_products(batch: tuple):
    pair = random_pair(4, *batch, 7, 2, 5)
    wide = linalg.stack(pair)
    assert wide.a.shape == (*batch, 7, 8) and wide.b.shape == (*batch, 8, 5)
    np.testing.assert_allclose(dense(wide), dense(pair).sum(axis=0), rtol=1e-5, atol=1e-6)
    # In order: the first client's components come first, in both factors.
    np.testing.assert_array_equal(wide.a[..., :2], pair.a[0])
    np.testing.assert_array_equal(wide.b[..., 6:, :], pair.b[3])


# ---------------------------------------------------------------------------------------- threads


def test_blas_uses_one_thread_unless_set_by_the_user():
    for given, want in ((None, "1"), ("2", "2")):
        environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
        if given is not None:
            environment["OPENBLAS_NUM_THREADS"] = given
        code = "import os, fedjax_lora; print(os.environ['OPENBLAS_NUM_THREADS'])"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == want
