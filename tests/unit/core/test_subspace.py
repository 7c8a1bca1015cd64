"""Triplets by subspace iteration, run on a CPU, against float64 NumPy.

On a CPU `linalg.svd` uses LAPACK; here the function that accelerators use is called itself.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora.core import linalg, subspace
from fedjax_lora.core.types import LoRA

EPS = float(jnp.finfo(jnp.float32).eps)
SIZE, OTHER, WANTED = 48, 56, 4
AT = np.arange(SIZE)

SPECTRA = {
    "flat": np.linspace(1.0, 0.6, SIZE),
    "equal": np.ones(SIZE),
    "slow": 1 / (AT + 1.0),
    "quick": 1 / (AT + 1.0) ** 2,
    "geometric": 0.7**AT,
    "steep": 0.3**AT,
    "low rank": np.where(AT < 2, 1.0, 0.0),
    "full rank": np.where(AT < WANTED, 1.0, 0.0),
    "repeated": np.where(AT < WANTED, 2.0, 1.0),
    "plateau": np.where(AT < WANTED, 1.0, 0.97),
    "one and a plain": np.where(AT < 1, 1.0, np.linspace(1e-2, 6e-3, SIZE)),
    "two clusters": np.where(AT < 2, 1.0, np.where(AT < 6, 1e-3 * (1 - 1e-3 * AT), 3e-4)),
    "one and 0.0001": np.where(AT < 1, 1.0, np.where(AT < WANTED, 1e-4, 5e-5)),
    "zero": np.zeros(SIZE),
}


def leading(a: Any, b: Any, rank: int = WANTED) -> tuple[np.ndarray, ...]:
    a, b = (jnp.asarray(x, jnp.float32) for x in (a, b))
    return tuple(np.asarray(x, np.float64) for x in subspace.leading_triplets(a, b, rank))


def check(a: np.ndarray, b: np.ndarray, rank: int = WANTED) -> None:
    """Values, orthonormality, order and the error of the truncated product."""
    a, b = (np.asarray(x, np.float32).astype(np.float64) for x in (a, b))
    u, s, vt = leading(a, b, rank)
    want_u, want, want_vt = np.linalg.svd(a @ b, full_matrices=False)
    size = np.linalg.norm(a) * np.linalg.norm(b) if a.shape[1] < min(a.shape[0], b.shape[1]) else 0
    size = max(size, np.linalg.norm(want[:rank]))
    for rows in (u.T, vt):
        np.testing.assert_allclose(rows @ rows.T, np.eye(rank), atol=2e-6)
    assert np.all(s >= 0) and np.all(np.diff(s) <= 0)
    assert np.linalg.norm(s - want[:rank]) <= 2e-5 * size
    error = np.linalg.norm(a @ b - (u * s) @ vt)
    least = np.linalg.norm(a @ b - (want_u[:, :rank] * want[:rank]) @ want_vt[:rank])
    assert error - least <= 2 * subspace.MAX_EXCESS * size


def with_spectrum(s: np.ndarray, i: int, o: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, len(s))))[0] for n in (i, o))
    return (u * s) @ v.T


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_truncation_is_as_good_as_the_best_one_for_any_spectrum(spectrum: str):
    check(with_spectrum(SPECTRA[spectrum], SIZE, OTHER), np.eye(OTHER))


@pytest.mark.parametrize("fall", [0.005, 0.003, 0.002, 0.001, 0.0003])
def test_excess_is_small_where_the_steps_do_not_suffice(fall: float):
    """The hardest spectra: equal values, and behind them others that are hardly smaller."""
    s = np.where(AT < WANTED, 1.0, 1.0 - fall)
    m = with_spectrum(s, SIZE, OTHER).astype(np.float32).astype(np.float64)
    u, values, vt = leading(m, np.eye(OTHER))
    excess = np.linalg.norm(m - (u * values) @ vt) - np.linalg.norm(s[WANTED:])
    assert excess / np.linalg.norm(values) < subspace.WORST_EXCESS


@pytest.mark.parametrize("case", ["one entry", "equal columns", "identity"])
def test_linearly_dependent_columns_do_not_break_the_iteration(case: str):
    m = {
        "one entry": np.eye(SIZE)[:1].T * np.eye(OTHER)[:1],
        "equal columns": np.ones((SIZE, OTHER)),
        "identity": np.eye(SIZE, OTHER),
    }[case]
    check(m, np.eye(OTHER))


@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((20, 6, 15), 6),  # all there are
        ((40, 12, 30), 2),  # a block narrower than the stack, with factors that stay apart
        ((8, 20, 6), 3),
        ((1, 1, 1), 1),
        ((7, 1, 5), 1),
    ],
)
def test_truncation_is_optimal_for_every_shape(shape: tuple[int, int, int], rank: int):
    rng = np.random.default_rng(1)
    i, k, o = shape
    check(rng.normal(size=(i, k)), rng.normal(size=(k, o)), rank)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_squares_neither_overflow_nor_vanish(scale: float):
    m = with_spectrum(SPECTRA["slow"], SIZE, OTHER)
    s = leading(m * scale, np.eye(OTHER))[1]
    np.testing.assert_allclose(s / scale, SPECTRA["slow"][:WANTED], atol=1e-5)


def test_batched_layers_equal_separate_layers():
    """Layers that converge early are not changed while the others iterate."""
    names = ("low rank", "plateau", "zero", "flat")
    m = np.stack([with_spectrum(SPECTRA[name], SIZE, OTHER) for name in names])
    a = jnp.asarray(m, jnp.float32)
    b = jnp.broadcast_to(jnp.eye(OTHER), (len(names), OTHER, OTHER))
    fn = functools.partial(subspace.leading_triplets, rank=WANTED)
    together = jax.vmap(fn)(a, b)
    for n in range(len(names)):
        u, s, vt = (np.asarray(x[n], np.float64) for x in together)
        alone = leading(a[n], b[n])
        np.testing.assert_allclose(s, alone[1], atol=1e-5)
        error, want = (np.linalg.norm(m[n] - (x * y) @ z) for x, y, z in ((u, s, vt), alone))
        assert abs(error - want) < 3e-6 * max(1.0, np.linalg.norm(s))


@pytest.mark.parametrize("spectrum", ["plateau", "flat", "slow", "two clusters"])
def test_remaining_error_is_not_underestimated(spectrum: str):
    """A small estimate is a true bound; with the first random vectors the estimate is large."""
    m = with_spectrum(SPECTRA[spectrum], SIZE, OTHER).astype(np.float32)
    s = np.linalg.svd(m.astype(np.float64), compute_uv=False)
    least = np.linalg.norm(s[WANTED:])
    q = np.linalg.qr(np.random.default_rng(2).normal(size=(OTHER, 2 * WANTED)))[0]
    estimate = jax.jit(subspace.excess_error)
    seen = []
    for _ in range(100):
        x, values, y = np.linalg.svd(m @ q, full_matrices=False)
        q = q @ y.T
        u, t, v = x[:, :WANTED], values[:WANTED], q[:, :WANTED]
        residual = np.linalg.norm(m.T @ u - v * t, axis=0)
        got = float(estimate(*(jnp.asarray(z, jnp.float32) for z in (values, residual))))
        excess = (np.linalg.norm(m - (u * t) @ v.T) - least) / np.linalg.norm(t)
        assert got > 0.1 or excess < 2 * got + 1e-7
        seen.append(got)
        q = np.linalg.qr(m.T @ x)[0]
    assert seen[0] > 0.05 and seen[-1] < 1e-4


def test_accelerators_lower_to_subspace_iteration_and_cpus_to_lapack():
    """No singular value decomposition is left in a TPU's program, and LAPACK's stays on a CPU."""
    shapes = LoRA(jnp.zeros((2, 40, 12)), jnp.zeros((2, 12, 30)))
    traced = jax.jit(linalg.svd, static_argnums=1).trace(shapes, 3)
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu")}
    assert "svd" in texts["cpu"] and "cholesky" not in texts["cpu"]
    assert "cholesky" in texts["tpu"] and "qdwh" not in texts["tpu"]
